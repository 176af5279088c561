"""The processor models of the emulator that the lab uses, and what each offers."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LabError


@dataclass(frozen=True)
class Model:
    """A processor model and what kvm_intel makes of it."""

    name: str  # as the emulator calls it
    summary: str
    provides: tuple[str, ...]  # becomes VMLET_REQUIRE, beside what every flavour provides
    parameters: tuple[tuple[str, str], ...]  # of kvm_intel, as /sys/module shows them


def _parameters(ept: str, vpid: str, unrestricted: str) -> tuple[tuple[str, str], ...]:
    return (("ept", ept), ("vpid", vpid), ("unrestricted_guest", unrestricted))


_FULL = ("vmx", "ept", "vpid", "unrestricted_guest")

HASWELL = Model(
    "corei7_haswell_4770", "Haswell: EPT, VPID, unrestricted guest", _FULL,
    _parameters("Y", "Y", "Y"),
)  # fmt: skip
PENRYN = Model(
    "core2_penryn_t9600", "first-generation VT-x: shadow paging, no VPID", ("vmx",),
    _parameters("N", "N", "N"),
)  # fmt: skip

# Later models either fail early in L1's kernel or claim a clock that the emulator does not keep.
MODELS = {
    model.name: model
    for model in (
        PENRYN,
        HASWELL,
        Model("broadwell_ult", "Broadwell: as Haswell", _FULL, HASWELL.parameters),
    )
}


def by_name(name: str) -> Model:
    """The model of this name; an error that lists them all otherwise."""
    try:
        return MODELS[name]
    except KeyError:
        raise LabError(f"no processor model {name}; there are {', '.join(MODELS)}") from None
