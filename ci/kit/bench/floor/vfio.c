/* The floor of the rows of maps in the benchmark "vfio": the ioctls that these take and no others.
 *
 * "vfio-floor GROUP ADDRESS PAGES" opens the device and reads lines "map SIZE"; for each maps so many
 * bytes of new memory, whose pages are "2m" or "4k" large, and unmaps them, and prints the nanoseconds
 * of both. The memory is of vmlet's kind, as in "vm.h".
 */
#include "floor.h"
#include <fcntl.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { IOVA = 2 << 20 };

static int open_container(const char *number, const char *address)
{
    char path[64];
    int container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
    check(container < 0, "/dev/vfio/vfio");
    snprintf(path, sizeof path, "/dev/vfio/%s", number);
    int group = open(path, O_RDWR | O_CLOEXEC);
    check(group < 0, path);
    check(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container), "VFIO_GROUP_SET_CONTAINER");
    check(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), "VFIO_SET_IOMMU");
    check(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address) < 0, "VFIO_GROUP_GET_DEVICE_FD");
    return container;
}

static void check_pages(unsigned long long size, int huge)
{
    char line[256];
    unsigned long long found = 0;
    FILE *file = fopen("/proc/self/smaps_rollup", "r");
    check(!file, "smaps_rollup");
    while (fgets(line, sizeof line, file))
        sscanf(line, "AnonHugePages: %llu kB", &found);
    fclose(file);
    if (huge ? found * 1024 < size : found) {
        fprintf(stderr, "floor: %llu KiB are of huge pages\n", found);
        exit(1);
    }
}

static void map_and_unmap(int container, unsigned long long size, int huge)
{
    struct vfio_iommu_type1_dma_map map = {.argsz = sizeof map, .iova = IOVA, .size = size};
    struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .iova = IOVA, .size = size};
    map.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
    long long begin = now();
    char *mapping = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    check(mapping == MAP_FAILED, "mmap");
    map.vaddr = ((__u64)mapping + HUGE_PAGE - 1) & -(__u64)HUGE_PAGE;
    madvise((void *)map.vaddr, size, MADV_HUGEPAGE);
    check(ioctl(container, VFIO_IOMMU_MAP_DMA, &map), "VFIO_IOMMU_MAP_DMA");
    long long mapped = now() - begin;
    check_pages(size, huge);
    begin = now();
    check(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap), "VFIO_IOMMU_UNMAP_DMA");
    printf("%lld %lld\n", mapped, now() - begin);
    fflush(stdout);
    munmap(mapping, size + HUGE_PAGE);
}

int main(int count, char **words)
{
    unsigned long long size;

    if (count != 4) {
        fprintf(stderr, "floor: GROUP ADDRESS PAGES\n");
        return 1;
    }
    int huge = !strcmp(words[3], "2m");
    if (!huge)
        check(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), "PR_SET_THP_DISABLE");
    int container = open_container(words[1], words[2]);
    while (scanf(" map %llu", &size) == 1)
        map_and_unmap(container, size, huge);
    return 0;
}
