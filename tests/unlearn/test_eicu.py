"""The eICU importer, on small tables of the same schema and, where they are at hand, on the demo's own."""

import csv
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from open_data import DATA, needs

from amnestic_unlearn import corpus
from amnestic_unlearn.corpus import SHIPPED, CorpusError
from amnestic_unlearn.eicu import import_eicu

DEMO = DATA / "eicu_demo"

PATIENT = {"gender": "Female", "age": "67", "unittype": "MICU", "unitstaytype": "admit", "unitadmitsource": "Floor"}
NOTE = "notes/Progress Notes/"
TABLES: dict[str, list[dict[str, object]]] = {
    "patient": [
        {"patientunitstayid": 30, "uniquepid": "p-3", "apacheadmissiondx": "", **PATIENT, "gender": ""},
        {"patientunitstayid": 20, "uniquepid": "p-1", "apacheadmissiondx": "Sepsis, pulmonary", **PATIENT},
        {"patientunitstayid": 100, "uniquepid": "p-1", "apacheadmissiondx": "Stroke", **PATIENT, "age": "> 89"},
        {"patientunitstayid": 5, "uniquepid": "p-5", "apacheadmissiondx": "Undiagnosed", **PATIENT},
    ],
    "diagnosis": [
        {"patientunitstayid": 20, "diagnosisstring": "pulmonary|respiratory failure|unheard-of hypoxemia"},
        {"patientunitstayid": 20, "diagnosisstring": "renal|disorder of kidney|nephropathia"},
        {"patientunitstayid": 20, "diagnosisstring": "renal|electrolytes|hyponatremia"},
        {"patientunitstayid": 100, "diagnosisstring": "neurologic|stroke"},
        {"patientunitstayid": 100, "diagnosisstring": "renal|oliguria"},
        {"patientunitstayid": 30, "diagnosisstring": "toxicology|overdose"},
        {"patientunitstayid": 999, "diagnosisstring": "burns/trauma|of nobody"},
    ],
    "pastHistory": [
        {"pasthistoryid": 2, "patientunitstayid": 20, "pasthistoryoffset": 90, "pasthistoryvalue": "CHF",
         "pasthistorypath": f"{NOTE}Past History/Organ Systems/Cardiovascular (R)/Congestive Heart Failure/CHF"},
        {"pasthistoryid": 9, "patientunitstayid": 20, "pasthistoryoffset": -5, "pasthistoryvalue": "Performed",
         "pasthistorypath": f"{NOTE}Past History/Past History Obtain Options/Performed"},
    ],
    "note": [
        {"noteid": 8, "patientunitstayid": 20, "noteoffset": 7, "notevalue": "none",
         "notepath": f"{NOTE}Social History / Family History/Social History/Ethanol Use/none"},
        {"noteid": 7, "patientunitstayid": 20, "noteoffset": 100, "notevalue": "Medication change / dose",
         "notepath": f"{NOTE}Interventions/Minor/Medication change / dose"},
        {"noteid": 6, "patientunitstayid": 20, "noteoffset": 7, "notevalue": "Medical Records",
         "notepath": f"{NOTE}Admission Page One/Source of Patient Information:/Medical Records"},
        {"noteid": 5, "patientunitstayid": 20, "noteoffset": 8, "notevalue": "none",
         "notepath": f"{NOTE}Social History / Family History/Social History/Ethanol Use/none"},
        {"noteid": 4, "patientunitstayid": 20, "noteoffset": 0, "notevalue": "Copies",
         "notepath": "notes/Shared/View and Save/Save Options/Print/Copies/Copies"},
        {"noteid": 3, "patientunitstayid": 20, "noteoffset": 0, "notevalue": "System View",
         "notepath": f"{NOTE}Assessment and Plan/View Options/System View"},
    ],
    "treatment": [
        {"treatmentid": 1, "patientunitstayid": 20, "treatmentoffset": 10,
         "treatmentstring": "toxicologic|drug overdose|activated charcoal"},
        {"treatmentid": 2, "patientunitstayid": 20, "treatmentoffset": 9,
         "treatmentstring": "endocrine|glucose metabolism|insulin"},
        {"treatmentid": 3, "patientunitstayid": 5, "treatmentoffset": 9, "treatmentstring": "renal|dialysis"},
    ],
}  # fmt: skip


def write_tables(folder: Path, tables: dict[str, list[dict[str, object]]], packed: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in tables.items():
        path = folder / f"{name}.csv{'.gz' * packed}"
        with gzip.open(path, "wt", newline="") if packed else path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_NONNUMERIC)
            writer.writeheader()
            writer.writerows(rows)
    return folder


def test_a_stay_becomes_a_document(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    out = tmp_path / "c.parquet"
    result = import_eicu(write_tables(tmp_path / "src", TABLES), out, top=2, progress=lambda *count: told.append(count))
    assert (result.documents, result.without_diagnosis) == (3, 1)
    assert result.labels == ("renal", "neurologic"), "by frequency over stays, then by name"
    assert told == [(1, 3), (2, 3), (3, 3)]
    first, unlabelled, last = corpus.read(out)
    assert first.text.splitlines() == [
        "MICU. admit from Floor. Female, age 67.",
        "Admission diagnosis: Sepsis, pulmonary.",
        "Past history: Performed; Organ Systems / Cardiovascular (R) / Congestive Heart Failure / CHF.",
        "Notes: Admission Page One / Source of Patient Information: Medical Records;"
        " Social History / Family History / Social History / Ethanol Use: none;"
        " Interventions / Minor: Medication change / dose.",
        "Treatment: glucose metabolism / insulin; drug overdose / activated charcoal.",
    ]
    assert unlabelled.text == "MICU. admit from Floor. unknown sex, age 67."
    assert [document.labels for document in (first, unlabelled, last)] == [("renal",), (), ("neurologic", "renal")]
    assert [document.group for document in (first, unlabelled, last)] == ["p-1", "p-3", "p-1"]
    assert all(document.split == corpus.assign_split(document.group) for document in (first, unlabelled, last))


def test_no_diagnosis_enters_the_text(tmp_path: Path) -> None:
    import_eicu(write_tables(tmp_path / "src", TABLES), tmp_path / "c.jsonl")
    text = " ".join(document.text for document in corpus.read(tmp_path / "c.jsonl"))
    for word in ("hypoxemia", "nephropathia", "hyponatremia", "renal", "toxicologic", "endocrine"):
        assert word not in text


def test_labels_may_be_chosen(tmp_path: Path) -> None:
    src = write_tables(tmp_path / "src", TABLES)
    import_eicu(src, tmp_path / "c.csv", labels=["toxicology", "pulmonary"])
    assert [document.labels for document in corpus.read(tmp_path / "c.csv")] == [("pulmonary",), ("toxicology",), ()]
    with pytest.raises(CorpusError, match="'burns/trauma'"):
        import_eicu(src, tmp_path / "d.csv", labels=["burns/trauma"])
    assert not (tmp_path / "d.csv").exists()


def test_gzip_case_and_row_order_change_nothing(tmp_path: Path) -> None:
    shouting = {
        name.upper(): [{column.upper(): value for column, value in row.items()} for row in reversed(rows)]
        for name, rows in TABLES.items()
    }
    for folder, tables, packed in (("a", TABLES, False), ("b", shouting, True)):
        import_eicu(write_tables(tmp_path / folder, tables, packed), tmp_path / f"{folder}.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize("table", list(TABLES))
def test_a_missing_table_is_named(tmp_path: Path, table: str) -> None:
    src = write_tables(tmp_path / "src", TABLES)
    (src / f"{table}.csv").unlink()
    with pytest.raises(CorpusError, match=f"{table}.csv"):
        import_eicu(src, tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("table", "column"), [("patient", "uniquepid"), ("note", "notepath"), ("treatment", "treatmentid")]
)
def test_a_missing_column_is_named(tmp_path: Path, table: str, column: str) -> None:
    rows = [{name: value for name, value in row.items() if name != column} for row in TABLES[table]]
    src = write_tables(tmp_path / "src", {**TABLES, table: rows})
    with pytest.raises(CorpusError, match=f"{table}.csv: the column {column} is missing"):
        import_eicu(src, tmp_path / "c.parquet")


def test_a_malformed_id_is_refused_without_its_value(tmp_path: Path) -> None:
    rows = [*TABLES["note"], {**TABLES["note"][0], "patientunitstayid": "Mr Secret"}]
    src = write_tables(tmp_path / "src", {**TABLES, "note": rows})
    with pytest.raises(CorpusError) as refused:
        import_eicu(src, tmp_path / "c.parquet")
    assert str(refused.value) == "note.csv: the column patientunitstayid holds what is not a whole number"
    assert [path.name for path in tmp_path.iterdir()] == ["src"], "leaves nothing behind"


def test_a_stay_listed_twice_is_refused(tmp_path: Path) -> None:
    src = write_tables(tmp_path / "src", {**TABLES, "patient": [*TABLES["patient"], TABLES["patient"][1]]})
    with pytest.raises(CorpusError, match="patient: a stay is listed twice"):
        import_eicu(src, tmp_path / "c.parquet")


def test_the_command_imports(tmp_path: Path) -> None:
    src = write_tables(tmp_path / "src", TABLES)
    command = [sys.executable, "-c", "from amnestic_server.cli import main; main()", "corpus", "import", "eicu"]
    arguments = ["--src", str(src), "--out", str(tmp_path / "c.jsonl.gz"), "--labels", "renal, pulmonary", "--json"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["labels"] == ["renal", "pulmonary"]
    assert corpus.read(tmp_path / "c.jsonl.gz")[0].labels == ("pulmonary", "renal")
    (src / "note.csv").unlink()
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: neither note.csv") and done.stderr.count("\n") == 1


@needs("eicu_demo")
def test_the_demo_gives_the_shipped_corpus_and_the_labels_derived_elsewhere(tmp_path: Path) -> None:
    import_eicu(DEMO, tmp_path / "c.parquet")
    assert corpus.digest(tmp_path / "c.parquet") == corpus.digest(SHIPPED)
    with gzip.open(DEMO / "eicu_demo_stays_multilabel.jsonl.gz", "rt") as file:
        derived = sorted(map(json.loads, file), key=lambda stay: stay["id"])
    documents = corpus.read(SHIPPED)
    kept = set(import_eicu(DEMO, tmp_path / "c.jsonl").labels)
    assert [set(stay["labels"]) & kept for stay in derived] == [set(document.labels) for document in documents]
    assert [stay["group"] for stay in derived] == [document.group for document in documents]
    for stay, document in zip(derived, documents, strict=True):
        assert set(re.findall(r"\w+", stay["text"])) == set(re.findall(r"\w+", document.text))
