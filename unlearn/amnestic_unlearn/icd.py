"""ICD-9-CM and ICD-10-CM diagnosis codes as categories of disease, by ranges that a person can read.

A bound is a code of the tabular lists with or without its point and as short as one likes: `428`, `250.4`, `V10`,
`E880`, `I50`, `O9A`. A range `390-459` holds every code from the first bound to the last code below the second, so
`I00-I99` holds I99.9; a bound alone is the range of itself.

`CATEGORIES` are the chapters of both revisions, made to agree: chapter 6 of ICD-9-CM is divided into nervous system
and sense organs as ICD-10-CM does, and ICD-9-CM's disorders of immunity (279) stand with blood, where ICD-10-CM has
them. What moved from one chapter to another code by code (transient ischaemia from circulatory, 435, to nervous, G45)
is left where each revision puts it. Sources: ICD-9-CM Official Guidelines and tabular list, CDC/NCHS and CMS,
6th edition (October 2011); ICD-10-CM tabular list, CDC/NCHS, 2024.

`DEFAULT` are six of them: organ systems that many admissions are coded with (each more than 20 of the 129 of
MIMIC-III's demo), so that they can be learned and forgotten, and the same six that the eICU corpus has as its most
frequent organ systems (cardiovascular, pulmonary, neurologic, renal, gastrointestinal, endocrine), so that results can
be set side by side.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from amnestic_unlearn.corpus import CorpusError

ICD9, ICD10 = 9, 10
_KEYS = {"icd9": ICD9, "icd10": ICD10}

# Letters and figures of a code without its point. In both lists a letter as third sign stands behind all figures.
_SHAPES = {
    ICD9: re.compile(r"[0-9]{3}[0-9]{0,2}|V[0-9]{2}[0-9]{0,2}|E[0-9]{3}[0-9]?"),
    ICD10: re.compile(r"[A-Z][0-9][0-9A-Z][0-9A-Z]{0,4}"),
}
_POINTED = {
    ICD9: re.compile(r"[0-9V][0-9]{2}(\.[0-9]{1,2})?|E[0-9]{3}(\.[0-9])?"),
    ICD10: re.compile(r"[A-Z][0-9][0-9A-Z](\.[0-9A-Z]{1,4})?"),
}


@dataclass(frozen=True, slots=True)
class Range:
    """From `low` to the last code that begins with `high` or lies before it; both without point."""

    low: str
    high: str

    def __contains__(self, code: str) -> bool:
        return self.low <= code and code[: len(self.high)] <= self.high


@dataclass(frozen=True, slots=True)
class Category:
    """A category of disease: its ranges of each revision."""

    name: str
    icd9: tuple[Range, ...] = ()
    icd10: tuple[Range, ...] = ()

    def holds(self, code: str, revision: int) -> bool:
        """Whether a code, as `normal` gives it, belongs to the category."""
        ranges = self.icd9 if revision == ICD9 else self.icd10
        # ICD-9-CM has three lists, and no range of one may hold a code of another.
        return any(code in part and (revision == ICD10 or _list(part.low) == _list(code)) for part in ranges)


def normal(code: str, revision: int) -> str | None:
    """A code as the tables have it (any case, with or without point and blanks), normal; None if it is not one."""
    plain = code.strip().upper().replace(".", "")
    return plain if _SHAPES[revision].fullmatch(plain) else None


def parse_range(text: str, revision: int) -> Range:
    """`390-459`, `I50` and the like; raises ValueError, saying what is wrong, without file and category."""
    parts = [part.strip().upper() for part in text.split("-")]
    if len(parts) > 2:
        raise ValueError(f"{text!r} is not a code or a range of two codes")
    for part in parts:
        if not (_POINTED[revision].fullmatch(part) or _SHAPES[revision].fullmatch(part)):
            raise ValueError(f"{part!r} in {text!r} is not a code of ICD-{revision}-CM")
    low, high = (parts[at].replace(".", "") for at in (0, -1))
    if revision == ICD9 and _list(low) != _list(high):
        raise ValueError(f"{text!r} goes from one list of ICD-9-CM into another")
    if low > high and not low.startswith(high):
        raise ValueError(f"{text!r} ends before it begins")
    return Range(low, high)


def read_categories(path: Path) -> dict[str, Category]:
    """Categories of a .toml or .json file: a table a category, with lists of ranges under `icd9` and `icd10`.

    Raises CorpusError, naming file and category, for what cannot be read or is not of this form.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except OSError:
        raise CorpusError(f"{path.name}: cannot be read") from None
    except ValueError as error:
        raise CorpusError(f"{path.name}: neither TOML (.toml) nor JSON: {error}") from None
    if not isinstance(content, dict) or not content:
        raise CorpusError(f"{path.name}: not a table of categories")
    return {name: _category(path, name, ranges) for name, ranges in content.items()}


def choose(categories: Mapping[str, Category], labels: tuple[str, ...]) -> tuple[Category, ...]:
    """The categories of these names in this order; raises CorpusError for a name that is not among them."""
    for label in labels:
        if label not in categories:
            raise CorpusError(f"there is no category {label!r}: the categories are {', '.join(categories)}")
    return tuple(categories[label] for label in dict.fromkeys(labels))


def _list(code: str) -> str:
    """Which list of ICD-9-CM: diseases, V codes or E codes."""
    return code[0] if code[0] in "VE" else ""


def _category(path: Path, name: str, ranges: object) -> Category:
    where = f"{path.name}, category {name!r}"
    if not name.strip() or ";" in name or "," in name:
        raise CorpusError(f"{where}: a name is not empty and has neither comma nor semicolon")
    if not isinstance(ranges, dict) or not ranges or not ranges.keys() <= _KEYS.keys():
        raise CorpusError(f"{where}: not a table with icd9, icd10 or both")
    parsed: dict[str, tuple[Range, ...]] = {}
    for key, texts in ranges.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise CorpusError(f"{where}: {key} is not a list of ranges in quotes")
        try:
            parsed[key] = tuple(parse_range(text, _KEYS[key]) for text in texts)
        except ValueError as error:
            raise CorpusError(f"{where}: {error}") from None
    return Category(name, **parsed)


def _built_in(name: str, icd9: str, icd10: str) -> Category:
    return Category(
        name,
        tuple(parse_range(text, ICD9) for text in icd9.split()),
        tuple(parse_range(text, ICD10) for text in icd10.split()),
    )


CATEGORIES = {
    category.name: category
    for category in (
        _built_in("circulatory", "390-459", "I00-I99"),
        _built_in("respiratory", "460-519", "J00-J99"),
        _built_in("genitourinary", "580-629", "N00-N99"),
        _built_in("endocrine", "240-278", "E00-E89"),
        _built_in("digestive", "520-579", "K00-K95"),
        _built_in("nervous", "320-359", "G00-G99"),
        _built_in("infectious", "001-139", "A00-B99"),
        _built_in("neoplasms", "140-239", "C00-D49"),
        _built_in("blood", "279-289", "D50-D89"),
        _built_in("mental", "290-319", "F01-F99"),
        _built_in("senses", "360-389", "H00-H95"),
        _built_in("pregnancy", "630-679", "O00-O9A"),
        _built_in("skin", "680-709", "L00-L99"),
        _built_in("musculoskeletal", "710-739", "M00-M99"),
        _built_in("congenital", "740-759", "Q00-Q99"),
        _built_in("perinatal", "760-779", "P00-P96"),
        _built_in("symptoms", "780-799", "R00-R99"),
        _built_in("injury", "800-999", "S00-T88"),
        _built_in("external", "E000-E999", "V00-Y99"),
        _built_in("factors", "V01-V91", "Z00-Z99"),
        # Codes for special purposes (COVID-19, resistance): ICD-10-CM alone has them.
        Category("special", (), (parse_range("U00-U85", ICD10),)),
    )
}
DEFAULT = ("circulatory", "respiratory", "genitourinary", "endocrine", "digestive", "nervous")
