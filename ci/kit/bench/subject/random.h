/* Places to read at, the same in every guest (`load.h` first). */
static uint64_t next_random(void)
{
	static uint64_t state = 0x9e3779b97f4a7c15u;
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}
