"""ICD codes and categories: by hand, over the whole tables of codes, and files of categories that are wrong."""

import csv
import gzip
import json
from pathlib import Path

import pytest
from open_data import DATA, needs

from amnestic_unlearn import icd
from amnestic_unlearn.corpus import CorpusError
from amnestic_unlearn.icd import CATEGORIES, DEFAULT, ICD9, ICD10


def categories_of(code: str, revision: int) -> list[str]:
    plain = icd.normal(code, revision)
    return [] if plain is None else [name for name, group in CATEGORIES.items() if group.holds(plain, revision)]


@pytest.mark.parametrize(
    ("code", "revision", "expected"),
    [
        ("0030", ICD9, "infectious"),
        ("1398", ICD9, "infectious"),
        ("2780", ICD9, "endocrine"),
        ("27900", ICD9, "blood"),
        ("34690", ICD9, "nervous"),
        ("3598", ICD9, "nervous"),
        ("36000", ICD9, "senses"),
        ("428.0", ICD9, "circulatory"),
        ("4599", ICD9, "circulatory"),
        ("460", ICD9, "respiratory"),
        ("5849 ", ICD9, "genitourinary"),
        ("99999", ICD9, "injury"),
        ("V1582", ICD9, "factors"),
        ("e8490", ICD9, "external"),
        ("E0010", ICD9, "external"),
        ("E119", ICD10, "endocrine"),
        ("I2510", ICD10, "circulatory"),
        ("I99.9", ICD10, "circulatory"),
        ("C7A1", ICD10, "neoplasms"),
        ("D499", ICD10, "neoplasms"),
        ("D500", ICD10, "blood"),
        ("O9A111", ICD10, "pregnancy"),
        ("K9589", ICD10, "digestive"),
        ("V00.01XA", ICD10, "external"),
        ("Z3A20", ICD10, "factors"),
        ("U071", ICD10, "special"),
    ],
)
def test_a_code_belongs_to_its_chapter_alone(code: str, revision: int, expected: str) -> None:
    assert categories_of(code, revision) == [expected]


@pytest.mark.parametrize("code", ["", "42", "428.000", "A10", "V1", "E12", "NoDx"])
def test_what_is_no_code_of_icd9_belongs_nowhere(code: str) -> None:
    assert icd.normal(code, ICD9) is None


@needs("mimic3_demo")
def test_every_icd9_code_belongs_to_just_one_category() -> None:
    with gzip.open(DATA / "mimic3_demo" / "D_ICD_DIAGNOSES.csv.gz", "rt", newline="") as file:
        titles = {row["icd9_code"]: row["long_title"].lower() for row in csv.DictReader(file)}
    assert len(titles) > 14_000
    assert [code for code in titles if len(categories_of(code, ICD9)) != 1] == []
    for words, category in (
        ("acute myocardial infarction", "circulatory"),
        ("pneumonia due to", "respiratory"),
        ("chronic kidney disease", "genitourinary"),
        ("diabetes mellitus without", "endocrine"),
        ("generalized convulsive epilepsy", "nervous"),
    ):
        found = {categories_of(code, ICD9)[0] for code, title in titles.items() if title.startswith(words)}
        assert found == {category}, words


@needs("codiesp")
def test_every_icd10_code_belongs_to_its_chapter_as_derived_elsewhere() -> None:
    chapters = {"09": "circulatory", "10": "respiratory", "14": "genitourinary", "11": "digestive", "06": "nervous",
                "04": "endocrine", "01": "infectious", "02": "neoplasms", "03": "blood", "05": "mental", "07": "senses",
                "08": "senses", "12": "skin", "13": "musculoskeletal", "15": "pregnancy", "16": "perinatal",
                "17": "congenital", "18": "symptoms", "19": "injury", "20": "external", "21": "factors"}  # fmt: skip
    with gzip.open(DATA / "codiesp" / "codiesp.jsonl.gz", "rt") as file:
        documents = [json.loads(line) for line in file]
    for document in documents:
        found = {name for code in document["icd10cm"] for name in categories_of(code, ICD10)}
        assert found == {chapters[label[:2]] for label in document["labels"]}, document["id"]


def test_the_default_is_six_categories_with_both_revisions() -> None:
    assert len(DEFAULT) == 6
    assert all(CATEGORIES[name].icd9 and CATEGORIES[name].icd10 for name in DEFAULT)


def test_a_range_may_be_finer_than_a_category() -> None:
    kidneys = icd.parse_range("250.4-250.49", ICD9)
    assert "25040" in kidneys and "2504" in kidneys
    assert "2503" not in kidneys and "2505" not in kidneys and "250" not in kidneys
    assert "I5023" in icd.parse_range("I50.2", ICD10)
    assert "I5033" not in icd.parse_range("I50.2", ICD10)


@pytest.mark.parametrize("name", ["c.toml", "c.json"])
def test_categories_are_read_from_a_file(tmp_path: Path, name: str) -> None:
    content = {"heart failure": {"icd9": ["428", "402.01"], "icd10": ["I50"]}, "smoking": {"icd9": ["V15.82"]}}
    path = tmp_path / name
    if name.endswith("json"):
        path.write_text(json.dumps(content))
    else:
        path.write_text("\n".join(f'["{key}"]\n' + "\n".join(f"{r} = {v}" for r, v in value.items())
                                  for key, value in content.items()))  # fmt: skip
    read = icd.read_categories(path)
    assert list(read) == ["heart failure", "smoking"]
    assert read["heart failure"].holds("4280", ICD9) and read["heart failure"].holds("I509", ICD10)
    assert read["heart failure"].holds("40201", ICD9) and not read["heart failure"].holds("40211", ICD9)
    assert read["smoking"].holds("V1582", ICD9) and not read["smoking"].holds("I509", ICD10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "neither TOML .* nor JSON"),
        ("[]", "not a table of categories"),
        ("{}", "not a table of categories"),
        ('{"a": []}', "category 'a': not a table with icd9, icd10 or both"),
        ('{"a": {"icd11": ["1A00"]}}', "category 'a': not a table with icd9"),
        ('{"a": {"icd9": "390-459"}}', "icd9 is not a list of ranges"),
        ('{"a": {"icd9": []}}', "icd9 is not a list of ranges"),
        ('{"a": {"icd9": ["459-390"]}}', "'459-390' ends before it begins"),
        ('{"a": {"icd9": ["390-V10"]}}', "from one list of ICD-9-CM into another"),
        ('{"a": {"icd9": ["I00-I99"]}}', "'I00' in 'I00-I99' is not a code of ICD-9-CM"),
        ('{"a": {"icd10": ["390-459"]}}', "'390' in '390-459' is not a code of ICD-10-CM"),
        ('{"a": {"icd10": ["I00-I50-I99"]}}', "not a code or a range of two codes"),
        ('{"a;b": {"icd10": ["I00"]}}', "neither comma nor semicolon"),
    ],
)
def test_a_wrong_file_of_categories_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(CorpusError, match=rf"^c\.json.*{message}"):
        icd.read_categories(tmp_path / "c.json")


def test_a_file_that_is_not_there_and_a_label_that_is_unknown_are_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no\.toml: cannot be read"):
        icd.read_categories(tmp_path / "no.toml")
    with pytest.raises(CorpusError, match="there is no category 'cardiac': the categories are circulatory, "):
        icd.choose(CATEGORIES, ("digestive", "cardiac"))
