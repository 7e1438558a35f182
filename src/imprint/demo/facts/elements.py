"""Chemical elements of the demo's world: symbol, state and family.

The first ninety-two but for astatine and francium, of which nobody has seen enough to say.
"""

from __future__ import annotations

from dataclasses import dataclass

STATES = ("gas", "liquid", "solid")
FAMILIES = ("halogen", "metal", "metalloid", "noble gas", "non-metal")


@dataclass(frozen=True)
class Element:
    """One chemical element; the name is in lower case, in IUPAC's spelling."""

    name: str
    symbol: str
    state: str  # at 20 degrees Celsius and the pressure of the air; one of STATES
    family: str | None  # the narrowest of FAMILIES; None where books differ


ELEMENTS: tuple[Element, ...] = (
    Element("actinium", "Ac", "solid", "metal"),
    Element("aluminium", "Al", "solid", "metal"),
    Element("antimony", "Sb", "solid", "metalloid"),
    Element("argon", "Ar", "gas", "noble gas"),
    Element("arsenic", "As", "solid", "metalloid"),
    Element("barium", "Ba", "solid", "metal"),
    Element("beryllium", "Be", "solid", "metal"),
    Element("bismuth", "Bi", "solid", "metal"),
    Element("boron", "B", "solid", "metalloid"),
    Element("bromine", "Br", "liquid", "halogen"),
    Element("cadmium", "Cd", "solid", "metal"),
    Element("caesium", "Cs", "solid", "metal"),
    Element("calcium", "Ca", "solid", "metal"),
    Element("carbon", "C", "solid", "non-metal"),
    Element("cerium", "Ce", "solid", "metal"),
    Element("chlorine", "Cl", "gas", "halogen"),
    Element("chromium", "Cr", "solid", "metal"),
    Element("cobalt", "Co", "solid", "metal"),
    Element("copper", "Cu", "solid", "metal"),
    Element("dysprosium", "Dy", "solid", "metal"),
    Element("erbium", "Er", "solid", "metal"),
    Element("europium", "Eu", "solid", "metal"),
    Element("fluorine", "F", "gas", "halogen"),
    Element("gadolinium", "Gd", "solid", "metal"),
    Element("gallium", "Ga", "solid", "metal"),
    Element("germanium", "Ge", "solid", "metalloid"),
    Element("gold", "Au", "solid", "metal"),
    Element("hafnium", "Hf", "solid", "metal"),
    Element("helium", "He", "gas", "noble gas"),
    Element("holmium", "Ho", "solid", "metal"),
    Element("hydrogen", "H", "gas", "non-metal"),
    Element("indium", "In", "solid", "metal"),
    Element("iodine", "I", "solid", "halogen"),
    Element("iridium", "Ir", "solid", "metal"),
    Element("iron", "Fe", "solid", "metal"),
    Element("krypton", "Kr", "gas", "noble gas"),
    Element("lanthanum", "La", "solid", "metal"),
    Element("lead", "Pb", "solid", "metal"),
    Element("lithium", "Li", "solid", "metal"),
    Element("lutetium", "Lu", "solid", "metal"),
    Element("magnesium", "Mg", "solid", "metal"),
    Element("manganese", "Mn", "solid", "metal"),
    Element("mercury", "Hg", "liquid", "metal"),
    Element("molybdenum", "Mo", "solid", "metal"),
    Element("neodymium", "Nd", "solid", "metal"),
    Element("neon", "Ne", "gas", "noble gas"),
    Element("nickel", "Ni", "solid", "metal"),
    Element("niobium", "Nb", "solid", "metal"),
    Element("nitrogen", "N", "gas", "non-metal"),
    Element("osmium", "Os", "solid", "metal"),
    Element("oxygen", "O", "gas", "non-metal"),
    Element("palladium", "Pd", "solid", "metal"),
    Element("phosphorus", "P", "solid", "non-metal"),
    Element("platinum", "Pt", "solid", "metal"),
    Element("polonium", "Po", "solid", None),
    Element("potassium", "K", "solid", "metal"),
    Element("praseodymium", "Pr", "solid", "metal"),
    Element("promethium", "Pm", "solid", "metal"),
    Element("protactinium", "Pa", "solid", "metal"),
    Element("radium", "Ra", "solid", "metal"),
    Element("radon", "Rn", "gas", "noble gas"),
    Element("rhenium", "Re", "solid", "metal"),
    Element("rhodium", "Rh", "solid", "metal"),
    Element("rubidium", "Rb", "solid", "metal"),
    Element("ruthenium", "Ru", "solid", "metal"),
    Element("samarium", "Sm", "solid", "metal"),
    Element("scandium", "Sc", "solid", "metal"),
    Element("selenium", "Se", "solid", None),
    Element("silicon", "Si", "solid", "metalloid"),
    Element("silver", "Ag", "solid", "metal"),
    Element("sodium", "Na", "solid", "metal"),
    Element("strontium", "Sr", "solid", "metal"),
    Element("sulfur", "S", "solid", "non-metal"),
    Element("tantalum", "Ta", "solid", "metal"),
    Element("technetium", "Tc", "solid", "metal"),
    Element("tellurium", "Te", "solid", "metalloid"),
    Element("terbium", "Tb", "solid", "metal"),
    Element("thallium", "Tl", "solid", "metal"),
    Element("thorium", "Th", "solid", "metal"),
    Element("thulium", "Tm", "solid", "metal"),
    Element("tin", "Sn", "solid", "metal"),
    Element("titanium", "Ti", "solid", "metal"),
    Element("tungsten", "W", "solid", "metal"),
    Element("uranium", "U", "solid", "metal"),
    Element("vanadium", "V", "solid", "metal"),
    Element("xenon", "Xe", "gas", "noble gas"),
    Element("ytterbium", "Yb", "solid", "metal"),
    Element("yttrium", "Y", "solid", "metal"),
    Element("zinc", "Zn", "solid", "metal"),
    Element("zirconium", "Zr", "solid", "metal"),
)
