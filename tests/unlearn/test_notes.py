"""Cleaning of notes, on invented ones in the form of MIMIC's, and reading of CSV files that are whole or broken."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnestic_unlearn import notes
from amnestic_unlearn.corpus import CorpusError

MIMIC_IV = """ \nName:  ___                    Unit No:   ___
 \nHistory of Present Illness:
He was told of the diagnosis
and of ___ ___,\tthen seen.
 \nDischarge Diagnosis:
Primary:
Sepsis: resolved
History of stroke

Secondary Diagnosis:
- Gout
Discharge Condition:
Stable.
 \nFollowup Instructions:
___
"""
MIMIC_III = """Admission Date:  [**2151-8-4**]     Discharge Date:  [**2151-8-
9**]
DISCHARGE DIAGNOSES:
1.  Angina.
2.  MEDICATION NONCOMPLIANCE.

MEDICATIONS ON DISCHARGE:  Aspirin.

FINAL DIAGNOSIS
Gout

                 [**First Name8 (NamePattern2) **] [**Last Name (NamePattern1) **], M.D.
"""


def test_placeholders_and_blanks_are_collapsed_and_diagnoses_left_out() -> None:
    assert notes.clean(MIMIC_IV, keep_diagnoses=False).splitlines() == [
        "Name: _ Unit No: _",
        "History of Present Illness:",
        "He was told of the diagnosis",
        "and of _, then seen.",
        "Discharge Condition:",
        "Stable.",
        "Followup Instructions:",
        "_",
    ]
    assert notes.clean(MIMIC_III, keep_diagnoses=False).splitlines() == [
        "Admission Date: _ Discharge Date: _",
        "MEDICATIONS ON DISCHARGE: Aspirin.",
    ]


def test_diagnoses_may_be_kept() -> None:
    kept = notes.clean(MIMIC_IV, keep_diagnoses=True)
    assert "Discharge Diagnosis:\nPrimary:\nSepsis: resolved\nHistory of stroke\nSecondary Diagnosis:\n- Gout\n" in kept
    assert notes.clean(MIMIC_III, keep_diagnoses=True).endswith("FINAL DIAGNOSIS\nGout\n_, M.D.")


@pytest.mark.parametrize(
    "heading",
    ["Discharge Diagnosis:", "DISCHARGE DIAGNOSES", "Principal Diagnosis: gout", "FINAL DIAGNOSIS/ES:",
     "# Primary and Secondary Diagnoses:", "Diagnosis:", "Diagnoses on admission:", "POSTOPERATIVE DIAGNOSIS:",
     "Primary Discharge Diagnosis :", "Admission diagnosis:"],
)  # fmt: skip
def test_headings_of_diagnoses(heading: str) -> None:
    assert notes.clean(f"Before.\n{heading}\nsecret\nDischarge Condition:\nafter", False) == (
        "Before.\nDischarge Condition:\nafter"
    )


@pytest.mark.parametrize(
    "line",
    ["diagnosis", "The diagnosis: unclear.", "of the discharge diagnosis that", "Discharge diagnoses were discussed.",
     "Differential diagnosis included gout"],
)  # fmt: skip
def test_prose_is_no_heading(line: str) -> None:
    assert notes.clean(f"{line}\nkept", False) == f"{line}\nkept"


@given(st.text(alphabet=st.sampled_from("a_ \n[]*:\t")))
def test_cleaning_cleaned_text_changes_nothing(text: str) -> None:
    once = notes.clean(text, keep_diagnoses=True)
    assert notes.clean(once, keep_diagnoses=True) == once
    assert "__" not in once and "\n\n" not in once and not once.startswith((" ", "\n"))


@pytest.mark.parametrize("packed", [False, True])
def test_rows_with_breaks_and_quotes_are_read_and_bytes_told(tmp_path: Path, packed: bool) -> None:
    content = '\ufeffA,b,C\r\n1,"x ""y"", z\n\nü",\r\n\r\n2,,"3"\r\n'.encode()
    path = tmp_path / f"t.csv{'.gz' * packed}"
    path.write_bytes(gzip.compress(content) if packed else content)
    told: list[tuple[int, int]] = []
    assert list(notes.read(path, ("c", "b"), lambda *bytes_: told.append(bytes_))) == [
        ["", 'x "y", z\n\nü'],
        ["3", ""],
    ]
    size = path.stat().st_size
    assert told[-1] == (size, size) and all(0 < done <= size for done, _ in told)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'a,b\n1,"Mr Secret\n2,x\n', "t.csv, line 3: malformed, cannot be read as csv"),
        (b'a,b\n1,"Mr" Secret\n', "t.csv, line 2: malformed, cannot be read as csv"),
        (b"a,b\n1,2\nMr Secret\n", "t.csv, line 3: 1 values, not 2"),
        (b"a,b\n1,2\nMr,Secret,3\n", "t.csv, line 3: 3 values, not 2"),
        (b"a,b\n1,2\nMr Secret\xff,3\n", "t.csv, after line 0: not UTF-8"),
        (b"a,c\n1,2\n", "t.csv: the column b is missing"),
        (b"", "t.csv: the column a is missing"),
    ],
)
def test_a_broken_file_is_refused_without_its_text(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(CorpusError) as refused:
        list(notes.read(tmp_path / "t.csv", ("a", "b"), None))
    assert str(refused.value) == message


def test_a_cut_gzip_file_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(b"a,b\n" + b"1,2\n" * 50_000)
    (tmp_path / "t.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(CorpusError, match=r"t\.csv\.gz, after line \d+: cannot be read to its end"):
        list(notes.read(tmp_path / "t.csv.gz", ("a", "b"), None))
    (tmp_path / "u.csv.gz").write_bytes(b"a,b\n1,2\n")
    with pytest.raises(CorpusError, match=r"u\.csv\.gz, after line 0: cannot be read to its end"):
        list(notes.read(tmp_path / "u.csv.gz", ("a", "b"), None))
