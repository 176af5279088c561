"""The lab on Intel VT-x: L1 in an emulator that has VMX, EPT and VPID but no file sharing.

The flow of one run: `models` says what a processor model offers, `kernel` and
`initrd` prepare what L1 boots, `image` packs the files that the command needs
into L1's root, `machine` runs the emulator, and `frames` takes the command's
output, its files and its status apart, which all come out of one I/O port.
"""
