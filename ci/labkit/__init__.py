"""The lab: runs commands of the project inside a kernel on emulated hardware.

``ci/lab`` and ``ci/kernels`` are the entries; ``docs`` of each module say what
it owns.  The flow of one run: `packages` makes sure the emulator and the
kernels are there, `initrd` builds L1's initial file system, `snapshot` boots
L1 once and keeps its state, `runner` resumes that state and runs the command.
"L1" is the kernel in the emulator, "L2" a guest that the project runs in it.
"""
