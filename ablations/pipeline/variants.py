"""A variant is a set of technique groups put on NCSN (Song & Ermon 2020, Sec. 6)."""

from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Which groups are in effect: Techniques 1, 2, 4 (noise scales), 3 (conditioning), 5 (EMA)."""

    noise_scales: bool = False
    conditioning: bool = False
    ema: bool = False

    @property
    def techniques(self) -> tuple[int, ...]:
        """The techniques in effect, ascending."""
        found = (1, 2, 4) * self.noise_scales + (3,) * self.conditioning + (5,) * self.ema
        return tuple(sorted(found))

    @property
    def name(self) -> str:
        """The paper's name: NCSN, NCSN_5, NCSN_1,2,4,5, NCSNv2, and others in the same manner."""
        techniques = self.techniques
        if not techniques:
            return "NCSN"
        if len(techniques) == 5:
            return "NCSNv2"
        return "NCSN_" + ",".join(map(str, techniques))

    @property
    def slug(self) -> str:
        """The name for files and flags: ncsn, ncsn_5, ncsn_1245, ncsnv2."""
        return self.name.lower().replace(",", "")

    @property
    def weights(self) -> str:
        """The weights that are sampled from: "ema" with Technique 5, else "raw"."""
        return "ema" if self.ema else "raw"


#: Every subset of the three groups, from none to all.
ALL_VARIANTS = tuple(
    Variant(noise_scales=a, conditioning=b, ema=c) for a, b, c in product((False, True), repeat=3)
)
#: All techniques together.
NCSNV2 = Variant(noise_scales=True, conditioning=True, ema=True)
#: The four of the paper's ablation (Figs. 5, 9, 13, 14): groups added one after another.
PAPER_VARIANTS = (
    Variant(),
    Variant(ema=True),
    Variant(noise_scales=True, ema=True),
    NCSNV2,
)


def parse_variant(text: str) -> Variant:
    """Return the variant of that name or slug, in either case; ValueError lists those known."""
    for variant in ALL_VARIANTS:
        if text.lower() in (variant.slug, variant.name.lower()):
            return variant
    known = ", ".join(variant.slug for variant in ALL_VARIANTS)
    raise ValueError(f"variant {text!r} is unknown; known: {known}")
