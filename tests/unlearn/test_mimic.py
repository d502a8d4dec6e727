"""The importers of MIMIC-III and MIMIC-IV: on a few rows each, on generated files, and on MIMIC-III's demo tables."""

import csv
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mimic_files import (
    DIAGNOSES_III,
    DIAGNOSES_IV,
    DISCHARGE,
    DISEASES,
    NOTEEVENTS,
    table,
    write_mimic_iii,
    write_mimic_iv,
)
from open_data import DATA, needs

from amnestic_server.cli import group
from amnestic_unlearn import corpus, icd
from amnestic_unlearn.corpus import CorpusError, Document
from amnestic_unlearn.mimic import MIMIC_III, MIMIC_IV, Database, ImportedNotes, import_mimic

SECRET = "Mr Secret"
LAST = f'The "last",\n\nsummary of ___ ___.\nDischarge Diagnosis:\n{SECRET}'

DIAGNOSES = [
    (1, 100, 1, "I509", 10),
    (1, 100, 2, "E119", 10),
    (1, 100, 3, "E039", 10),
    (2, 200, 1, "V1582", 9),
    (1, 101, 1, "4280 ", 9),
    (3, 300, 1, "5849", 9),
    (4, 400, 1, "486", 9),
    (4, 401, 1, "", ""),
    (5, 500, 1, "486", 9),
    (6, 600, 1, "486", 9),
]
# Columns of discharge without storetime; the rows are in no order.
NOTES = [
    ("1-AD-9", 1, 100, "AD", 9, "2180-05-09 00:00:00", "Addendum:\nSecond."),
    ("1-DS-2", 1, 100, "DS", 2, "2180-05-08 00:00:00", LAST),
    ("1-AD-8", 1, 100, "AD", 8, "2180-05-08 00:00:00", "Addendum: first."),
    ("1-AD-10", 1, 100, "AD", 10, "2180-05-10 00:00:00", "Addendum:   first."),
    ("1-DS-1", 1, 100, "DS", 1, "2180-05-07 00:00:00", "An earlier summary."),
    ("2-DS-1", 2, 200, "DS", 1, "2180-05-07 00:00:00", "A smoker."),
    ("2-DS-2", 2, "", "DS", 2, "2180-05-07 00:00:00", "Of no admission."),
    ("3-DS-1", 3, 300, "DS", 1, "2180-05-07 00:00:00", "A  smoker."),
    ("4-DS-1", 4, 401, "DS", 1, "2180-05-07 00:00:00", "Without codes."),
    ("4-AD-1", 4, 400, "AD", 1, "2180-05-07 00:00:00", "An addendum alone."),
    ("5-DS-1", 5, 500, "DS", 1, "2180-05-07 00:00:00", " \n "),
    ("1-DS-3", 1, 101, "DS", 3, "2180-06-07 00:00:00", "Back again."),
    ("6-RR-1", 6, 600, "RR", 1, "2180-06-07 00:00:00", "A radiology report."),
]  # fmt: skip


def write_iv(root: Path, notes: list[Any] = NOTES, diagnoses: list[Any] = DIAGNOSES, end: str = ".csv") -> Path:
    with table(root / "hosp" / f"diagnoses_icd{end}", DIAGNOSES_IV) as writer:
        writer.writerows(diagnoses)
    with table(root / "note" / f"discharge{end}", DISCHARGE) as writer:
        writer.writerows((*row[:6], "", row[6]) for row in notes)
    return root


def imported(database: Database, root: Path, out: Path, **options: Any) -> tuple[ImportedNotes, list[Document]]:
    return import_mimic(database, root, out, **options), corpus.read(out)


def test_an_admission_becomes_a_document(tmp_path: Path) -> None:
    result, documents = imported(MIMIC_IV, write_iv(tmp_path / "src"), tmp_path / "c.parquet")
    assert [(document.text, document.labels, document.group) for document in documents] == [
        ('The "last",\nsummary of _.\nAddendum: first.\nAddendum:\nSecond.', ("circulatory", "endocrine"), "1"),
        ("Back again.", ("circulatory",), "1"),
        ("A smoker.", (), "2"),
    ]
    assert all(document.split == corpus.assign_split(document.group) for document in documents)
    assert result == ImportedNotes(
        documents=3,
        labels={"circulatory": 2, "respiratory": 0, "genitourinary": 0, "endocrine": 1, "digestive": 0, "nervous": 0},
        unlabelled=1,
        notes=12,
        in_error=0,
        without_admission=1,
        superseded=2,
        without_diagnosis=1,
        without_summary=1,
        empty=1,
        duplicates=1,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.parquet", "src"], "leaves nothing behind"


def test_sections_of_diagnoses_may_be_kept(tmp_path: Path) -> None:
    src = write_iv(tmp_path / "src")
    _, kept = imported(MIMIC_IV, src, tmp_path / "c.csv", keep_diagnoses=True)
    assert kept[0].text.startswith(f'The "last",\nsummary of _.\nDischarge Diagnosis:\n{SECRET}\nAddendum: first.')


def test_row_order_gzip_and_case_change_nothing(tmp_path: Path) -> None:
    notes, diagnoses = NOTES.copy(), DIAGNOSES.copy()
    random.Random(1).shuffle(notes)
    random.Random(2).shuffle(diagnoses)
    import_mimic(MIMIC_IV, write_iv(tmp_path / "a"), tmp_path / "a.parquet")
    write_iv(tmp_path / "b", notes, diagnoses, ".CSV.gz")
    import_mimic(MIMIC_IV, tmp_path / "b", tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_mimic_iii_takes_discharge_summaries_that_are_no_errors(tmp_path: Path) -> None:
    def note(row: int, subject: int, admission: object, category: str, description: str, error: str, text: str) -> None:
        notes.writerow((row, subject, admission, "2151-08-04", "", "", category, description, "", error, text))

    # The demo's headers are in lower case, the full database's in upper case.
    with table(tmp_path / "NOTEEVENTS.csv.gz", NOTEEVENTS) as notes:
        note(5, 7, 70, "Discharge summary", "Addendum", "", "[**Known lastname **] came back.")
        note(4, 7, 70, "Discharge summary", "Report", "", "Seen at [**Hospital1 18**] [**2151-8-4**].")
        note(3, 7, 70, "Discharge summary", "Report", "1", "In error.")
        note(2, 7, 70, "Nursing/other", "Report", "", "Slept well.")
        note(1, 7, "", "Discharge summary", "Report", "", "Of no admission.")
    with table(tmp_path / "DIAGNOSES_ICD.csv", tuple(map(str.lower, DIAGNOSES_III))) as diagnoses:
        diagnoses.writerows([(1, 7, 70, 1, "0030"), (2, 7, 70, 2, "41401"), (3, 7, 70, "", "")])
    result, documents = imported(MIMIC_III, tmp_path, tmp_path / "c.jsonl")
    assert [(document.text, document.labels) for document in documents] == [
        ("Seen at _.\n_ came back.", ("circulatory",)),
    ]
    assert (result.notes, result.in_error, result.without_admission) == (4, 1, 1)


@needs("mimic3_demo")
def test_the_demo_tables_label_admissions(tmp_path: Path) -> None:
    """The demo has no notes, so each admission gets one; labels are those that its codes spell out."""
    codes: dict[str, tuple[str, set[str]]] = {}
    with gzip.open(DATA / "mimic3_demo" / "DIAGNOSES_ICD.csv.gz", "rt", newline="") as file:
        for row in csv.DictReader(file):
            codes.setdefault(row["hadm_id"], (row["subject_id"], set()))[1].add(row["icd9_code"])
    assert len(codes) == 129
    with table(tmp_path / "notes" / "NOTEEVENTS.csv", NOTEEVENTS) as notes:
        for number, (admission, (subject, _)) in enumerate(codes.items()):
            head = (number, subject, admission, "2151-08-04", "", "", "Discharge summary", "Report", "", "")
            notes.writerow((*head, f"Note {number} of {admission}."))
    out = tmp_path / "c.jsonl"
    result = import_mimic(MIMIC_III, DATA / "mimic3_demo", out, note_folder=tmp_path / "notes")
    assert result.documents == 129
    # ICD-9-CM by its numbers alone, as the chapters are usually told.
    chapters = {"circulatory": (390, 459), "respiratory": (460, 519), "genitourinary": (580, 629),
                "endocrine": (240, 278), "digestive": (520, 579), "nervous": (320, 359)}  # fmt: skip
    assert set(chapters) == set(icd.DEFAULT)
    for document in corpus.read(out):
        admission = document.text.rstrip(".").rpartition(" ")[2]
        subject, found = codes[admission]
        numbers = {int(code[:3]) for code in found if code[0].isdigit()}
        expected = {name for name, (low, high) in chapters.items() if any(low <= n <= high for n in numbers)}
        assert (document.group, set(document.labels)) == (subject, expected)
    assert min(result.labels.values()) > 20


@needs("schemas")
def test_generated_files_have_the_published_columns() -> None:
    schemas = json.loads((DATA / "schemas" / "schemas.json").read_text())
    for database, name, columns in (
        ("mimic-iv-note", "discharge", DISCHARGE),
        ("mimic-iv-hosp", "diagnoses_icd", DIAGNOSES_IV),
        ("mimic-iii", "NOTEEVENTS", NOTEEVENTS),
        ("mimic-iii", "DIAGNOSES_ICD", DIAGNOSES_III),
    ):
        assert tuple(column["name"] for column in schemas[database][name]) == columns


@pytest.mark.parametrize("database", [MIMIC_IV, MIMIC_III])
def test_generated_files_of_a_few_megabytes_are_imported(tmp_path: Path, database: Database) -> None:
    write = write_mimic_iv if database is MIMIC_IV else write_mimic_iii
    told: list[tuple[str, int, int]] = []
    src = write(tmp_path / "src", 1_500, lines=40, packed=False)
    assert next(src.rglob(f"{database.notes}.csv")).stat().st_size > 3_000_000
    result, documents = imported(
        database, src, tmp_path / "c.parquet", progress=lambda stage, done, total: told.append((stage, done, total))
    )
    assert result.documents == len(documents) == 1_500
    # Words of a disease stand in the texts of its admissions alone: text and labels of an admission came together.
    told_by_text = [
        {name for name, (_, _, signs) in DISEASES.items() if set(signs) & set(document.text.split())}
        for document in documents
    ]
    assert all(found <= set(document.labels) for found, document in zip(told_by_text, documents, strict=True))
    assert sum(map(len, told_by_text)) > 0.95 * sum(result.labels.values())
    assert len({document.group for document in documents}) > 900
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["reading notes", "writing admissions"]
    for stage in stages:
        shares = [done / total for name, done, total in told if name == stage]
        assert shares == sorted(shares) and shares[-1] == 1.0


def test_folders_may_be_named_apart_or_lie_below_one(tmp_path: Path) -> None:
    write_iv(tmp_path / "physionet.org" / "files")
    result = import_mimic(MIMIC_IV, tmp_path / "physionet.org", tmp_path / "a.jsonl")
    hosp, note = tmp_path / "physionet.org" / "files" / "hosp", tmp_path / "physionet.org" / "files" / "note"
    assert import_mimic(MIMIC_IV, hosp, tmp_path / "b.jsonl", note_folder=note) == result
    with pytest.raises(CorpusError, match=r"neither discharge\.csv nor discharge\.csv\.gz is in .*hosp"):
        import_mimic(MIMIC_IV, hosp, tmp_path / "c.jsonl")
    write_iv(tmp_path / "physionet.org" / "older")
    with pytest.raises(CorpusError, match=r"diagnoses_icd\.csv is in .* and in .*: name one of them"):
        import_mimic(MIMIC_IV, tmp_path / "physionet.org", tmp_path / "c.jsonl")


def test_a_result_of_unknown_form_is_refused_before_the_notes_are_read(tmp_path: Path) -> None:
    src = write_iv(tmp_path / "src")
    (src / "note" / "discharge.csv").write_text("not the table")
    with pytest.raises(CorpusError, match=r"c\.txt: a corpus ends in \.parquet"):
        import_mimic(MIMIC_IV, src, tmp_path / "c.txt")


def fault(tmp_path: Path, notes: list[Any] = NOTES, diagnoses: list[Any] = DIAGNOSES) -> str:
    with pytest.raises(CorpusError) as refused:
        import_mimic(MIMIC_IV, write_iv(tmp_path / "src", notes, diagnoses), tmp_path / "c.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["src"], "leaves nothing behind"
    assert "Secret" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((SECRET, 100, 1, "I509", 10), "diagnoses_icd.csv: the column subject_id holds what is not a whole number"),
        ((1, SECRET, 1, "I509", 10), "diagnoses_icd.csv: the column hadm_id holds what is not a whole number"),
        ((1, "1e3", 1, "I509", 10), "diagnoses_icd.csv: the column hadm_id holds what is not a whole number"),
        ((1, "", 1, "I509", 10), "diagnoses_icd.csv: the column hadm_id is empty in a row"),
        ((1, 100, 1, "I509", SECRET), "diagnoses_icd.csv: the column icd_version holds what is not a whole number"),
        ((1, 100, 1, "I509", 11), "diagnoses_icd.csv: the column icd_version holds what is neither 9 nor 10"),
        ((9, 100, 1, "I509", 10), "diagnoses_icd.csv and discharge.csv: an admission has two patients"),
        ((1, 100, 1, SECRET), "diagnoses_icd.csv: malformed, cannot be read as csv"),
    ],
)
def test_a_malformed_row_of_diagnoses_is_refused(tmp_path: Path, row: tuple[object, ...], message: str) -> None:
    assert fault(tmp_path, diagnoses=[*DIAGNOSES, row]) == message


def test_a_malformed_row_far_into_the_diagnoses_is_refused_by_its_line(tmp_path: Path) -> None:
    many = [(1, 100, 1, "I509", 10)] * 30_000
    assert fault(tmp_path, diagnoses=[*many, (1, 100, 1, SECRET)]) == (
        "diagnoses_icd.csv, line 30002: malformed, cannot be read as csv"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("x", SECRET, 100, "DS", 1, "", "t"), "discharge.csv: the column subject_id holds what is not a whole number"),
        (("x", "", 100, "DS", 1, "", "t"), "discharge.csv: the column subject_id is empty in a row"),
        (("x", 1, SECRET, "DS", 1, "", "t"), "discharge.csv: the column hadm_id holds what is not a whole number"),
        (("x", 1, 100, "DS", SECRET, "", "t"), "discharge.csv: the column note_seq holds what is not a whole number"),
        (("x", 9, 100, "DS", 1, "", SECRET), "diagnoses_icd.csv and discharge.csv: an admission has two patients"),
    ],
)
def test_a_malformed_note_is_refused(tmp_path: Path, row: tuple[object, ...], message: str) -> None:
    assert fault(tmp_path, notes=[*NOTES, row]) == message


@pytest.mark.parametrize(("file", "column"), [("note/discharge", "text"), ("hosp/diagnoses_icd", "icd_version")])
def test_a_missing_column_is_named(tmp_path: Path, file: str, column: str) -> None:
    src = write_iv(tmp_path / "src")
    path = src / f"{file}.csv"
    path.write_text(path.read_text().replace(column, "other", 1))
    with pytest.raises(CorpusError, match=rf"^{path.name}: the column {column} is missing$"):
        import_mimic(MIMIC_IV, src, tmp_path / "c.parquet")


def test_the_command_imports_and_says_what_was_left_out(tmp_path: Path) -> None:
    src = write_iv(tmp_path / "src")
    categories = tmp_path / "mine.toml"
    categories.write_text('["heart failure"]\nicd9 = ["428"]\nicd10 = ["I50"]\n[smoking]\nicd9 = ["V15.82"]\n')
    arguments = ["corpus", "import", "mimic-iv", "--src", str(src), "--out", str(tmp_path / "c.jsonl")]
    done = CliRunner().invoke(group, [*arguments, "--categories", str(categories), "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["labels"] == {"heart failure": 2, "smoking": 1} and result["duplicates"] == 1
    done = CliRunner().invoke(group, [*arguments, "--labels", "factors, nervous"])
    assert done.exit_code == 0, done.output
    assert "3 documents (2 without a label): factors 1, nervous 0" in done.stdout
    assert "1 summary that was met before" in done.stdout and "1 note of no admission" in done.stdout
    done = CliRunner().invoke(group, [*arguments, "--labels", "cardiac"])
    assert done.exit_code == 1 and done.stderr.startswith("Error: there is no category 'cardiac'")
    done = CliRunner().invoke(group, [*arguments, "--categories", str(src / "note" / "discharge.csv")])
    assert done.exit_code == 1 and done.stderr.startswith("Error: discharge.csv: neither TOML")
    assert "Secret" not in done.stderr


def test_the_command_runs_in_a_process_of_its_own_without_torch(tmp_path: Path) -> None:
    src = write_mimic_iii(tmp_path / "src", 20)
    code = (
        "import sys; from amnestic_server.cli import group;"
        f"group(['corpus','import','mimic-iii','--src',{str(src)!r},'--out',{str(tmp_path / 'c.csv')!r}],"
        "standalone_mode=False); sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(corpus.read(tmp_path / "c.csv")) == 20
