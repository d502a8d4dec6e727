"""Files of MIMIC-III and MIMIC-IV in the form in which PhysioNet ships them, with invented patients.

The columns are those of the published build scripts, in their order; the notes have the sections, the placeholders and
the hard line breaks of discharge summaries, and words that tell what the admission is coded with. No real text is in
them. Any size: rows are written one by one.
"""

import csv
import gzip
import io
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DISCHARGE = ("note_id", "subject_id", "hadm_id", "note_type", "note_seq", "charttime", "storetime", "text")
DIAGNOSES_IV = ("subject_id", "hadm_id", "seq_num", "icd_code", "icd_version")
NOTEEVENTS = ("ROW_ID", "SUBJECT_ID", "HADM_ID", "CHARTDATE", "CHARTTIME", "STORETIME", "CATEGORY", "DESCRIPTION",
              "CGID", "ISERROR", "TEXT")  # fmt: skip
DIAGNOSES_III = ("ROW_ID", "SUBJECT_ID", "HADM_ID", "SEQ_NUM", "ICD9_CODE")

# Of each default label: codes of both revisions, and words that a note of such an admission has.
DISEASES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "circulatory": (("4280", "41401"), ("I509", "I2510"), ("edema", "angina", "orthopnea", "troponin")),
    "respiratory": (("486", "49121"), ("J189", "J441"), ("sputum", "wheezing", "dyspnea", "nebulizer")),
    "genitourinary": (("5849", "5990"), ("N179", "N390"), ("creatinine", "dysuria", "oliguria", "dialysis")),
    "endocrine": (("25000", "2449"), ("E119", "E039"), ("glucose", "insulin", "thyroid", "polyuria")),
    "digestive": (("5780", "56210"), ("K922", "K5730"), ("melena", "abdomen", "ileus", "endoscopy")),
    "nervous": (("3320", "34590"), ("G20", "G40909"), ("tremor", "seizure", "gait", "neuropathy")),
}
_OTHER_CODES = (("V1582", "E8490", "78659"), ("Z87891", "Y92230", "R079"))
_FILLER = """
    patient was admitted to the hospital and remained stable on the floor, tolerating a diet; vital signs were within
    normal limits at discharge and the family was updated daily by the team "as usual"
""".split()  # noqa: SIM905


@contextmanager
def table(path: Path, columns: tuple[str, ...]) -> Iterator[Any]:
    """A csv.writer of a table's rows, quoted as PhysioNet does: gzipped if the name ends so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw:
        file: Any = gzip.GzipFile("", "wb", 1, fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
        with io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(columns)
            yield writer


def write_mimic_iv(root: Path, admissions: int, lines: int = 6, packed: bool = True, seed: int = 0) -> Path:
    """Write hosp/diagnoses_icd and note/discharge below `root`; about `lines` lines of history a note."""
    draw, end = random.Random(seed), ".csv.gz" if packed else ".csv"
    with (
        table(root / "hosp" / f"diagnoses_icd{end}", DIAGNOSES_IV) as diagnoses,
        table(root / "note" / f"discharge{end}", DISCHARGE) as notes,
    ):
        for patient, admission, diseases, revision in _admissions(draw, admissions):
            for number, code in enumerate(_codes(draw, diseases, revision), start=1):
                diagnoses.writerow((patient, admission, number, code, revision))
            text = _note(draw, diseases, lines, "___")
            notes.writerow((f"{patient}-DS-1", patient, admission, "DS", 1, "2180-05-07 00:00:00", "", text))
    return root


def write_mimic_iii(root: Path, admissions: int, lines: int = 6, packed: bool = True, seed: int = 0) -> Path:
    """Write DIAGNOSES_ICD and NOTEEVENTS to `root`; a third of the notes are of another category."""
    draw, end = random.Random(seed), ".csv.gz" if packed else ".csv"
    row = 0
    with (
        table(root / f"DIAGNOSES_ICD{end}", DIAGNOSES_III) as diagnoses,
        table(root / f"NOTEEVENTS{end}", NOTEEVENTS) as notes,
    ):
        for patient, admission, diseases, _ in _admissions(draw, admissions):
            for number, code in enumerate(_codes(draw, diseases, 9), start=1):
                diagnoses.writerow((row := row + 1, patient, admission, number, code))
            text = _note(draw, diseases, lines, "[**Hospital1 18**]")
            head = (patient, admission, "2151-08-04", "", "")
            notes.writerow((row := row + 1, *head, "Discharge summary", "Report", "", "", text))
            if draw.random() < 0.5:
                notes.writerow((row := row + 1, *head, "Nursing/other", "Report", "", "", text))
    return root


def _admissions(draw: random.Random, count: int) -> Iterator[tuple[int, int, list[str], int]]:
    patient = 10_000_000
    for number in range(count):
        # Two of three admissions are of a new patient.
        patient += draw.random() < 0.67
        # Spread over the file as the real ids are, which are random.
        admission = 20_000_000 + (number * 7_919) % 9_999_991
        yield patient, admission, [name for name in DISEASES if draw.random() < 0.4], draw.choice((9, 10))


def _codes(draw: random.Random, diseases: list[str], revision: int) -> list[str]:
    column = revision == 10
    return [draw.choice(DISEASES[name][column]) for name in diseases] + [draw.choice(_OTHER_CODES[column])]


def _note(draw: random.Random, diseases: list[str], lines: int, hidden: str) -> str:
    words = [word for name in diseases for word in DISEASES[name][2]]
    history = "\n".join(_line(draw, words) for _ in range(max(1, draw.randint(lines // 2, lines * 3 // 2))))
    listed = "\n".join(f"- {name} disease" for name in diseases)
    return (
        f" \nName:  {hidden}                     Unit No:   {hidden}\n \nAdmission Date:  {hidden}\n \n"
        f"History of Present Illness:\n{history}\n \nBrief Hospital Course:\n{_line(draw, words)}\n \n"
        f"Discharge Diagnosis:\nPrimary:\n{listed}\n \nDischarge Condition:\nStable.\n \n"
        f"Followup Instructions:\n{hidden}\n"
    )


def _line(draw: random.Random, words: list[str]) -> str:
    line = draw.choices(_FILLER, k=10)
    if words:
        line[draw.randrange(10)] = draw.choice(words)
    return " ".join(line)
