"""Small deterministic stand-ins for a real corpus and real checkpoints: made in seconds, and they do learn.

Every label has key words of its own among filler words that all documents share, so a two-layer model tells them
apart, and forgetting one of them has something to forget.
"""

import copy
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import CONFIG_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedTokenizerFast

from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.checkpoint import learn_tokenizer, transformers_silent
from amnestic_unlearn.corpus import Document
from amnestic_unlearn.twin import Twin

KEYWORDS = {
    "alpha": ("angina", "aorta", "murmur", "palpitations", "stent", "troponin"),
    "beta": ("cortisol", "glucose", "goitre", "insulin", "ketones", "thyroid"),
    "gamma": ("aphasia", "dementia", "seizure", "stroke", "syncope", "tremor"),
    "delta": ("creatinine", "dialysis", "kidney", "nephritis", "urea", "ureter"),
}
LABELS = tuple(KEYWORDS)
FILLER = """
    a admitted after again all and at care chart clear comfortable continued day discussed doctor evening family
    follow found given history home hospital in morning night no noted nurse of old on overnight patient plan
    reported rest reviewed room seen since stable team the then today tolerated unchanged unit was ward week well
    with without year
""".split()  # noqa: SIM905  one word a line would hide them

GROUPS = 150
DOCUMENTS_A_GROUP = 4
# Of 20 groups in a row, so that every split holds its share of any part of the corpus.
SPLIT_OF_TWENTY = ("train",) * 11 + ("gate",) * 3 + ("probe",) * 3 + ("test",) * 3
MAX_TOKENS = 64
# In the order of their ids, which differs between the two as published.
UNIGRAM_SPECIAL = {
    "xlm-roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    "camembert": ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>", "<mask>"),
}
# Documents may be longer than MAX_TOKENS, but what decides their labels stands within it.
LONGEST = 80
KEYWORDS_BEFORE = 40


def toy_corpus(path: Path, seed: int = 0) -> Path:
    """Write 600 documents as JSON Lines; about a third carries each label, a fifth none."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for group in range(GROUPS):
            for _ in range(DOCUMENTS_A_GROUP):
                labels = [label for label in LABELS if draw.random() < 0.33]
                document = {
                    "text": _text(draw, labels),
                    "labels": labels,
                    "split": SPLIT_OF_TWENTY[group % 20],
                    "group": f"patient-{group}",
                }
                file.write(json.dumps(document) + "\n")
    return path


def single_label_corpus(path: Path, seed: int = 0) -> Path:
    """Write 600 documents as JSON Lines with exactly one label each.

    A document holds three key words of its label and may hold one of another, so telling them apart takes weighing.
    """
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(GROUPS * DOCUMENTS_A_GROUP):
            group = number // DOCUMENTS_A_GROUP
            label, other = draw.sample(LABELS, k=2)
            words = _text(draw, []).split()
            for keyword in draw.sample(KEYWORDS[label], k=3) + draw.sample(KEYWORDS[other], k=draw.randint(0, 1)):
                words.insert(draw.randint(0, min(len(words), KEYWORDS_BEFORE)), keyword)
            document = {
                "text": " ".join(words),
                "labels": [label],
                "split": SPLIT_OF_TWENTY[group % 20],
                "group": f"patient-{group}",
            }
            file.write(json.dumps(document) + "\n")
    return path


def _text(draw: random.Random, labels: Sequence[str]) -> str:
    words = draw.choices(FILLER, k=draw.randint(3, LONGEST))
    for label in labels:
        for keyword in draw.sample(KEYWORDS[label], k=draw.randint(1, 3)):
            words.insert(draw.randint(0, min(len(words), KEYWORDS_BEFORE)), keyword)
    return " ".join(words)


def toy_checkpoint(folder: Path, corpus: Path, architecture: str = "bert", trained: bool = True) -> Path:
    """Save a 2-layer classifier of the corpus with its tokenizer; untrained it has random weights.

    Trained for a few seconds it reaches a macro F1 above 0.9 on the test split at a threshold of 0.5.
    """
    documents = corpora.read(corpus, splits=("train",))
    tokenizer = toy_tokenizer([document.text for document in documents], architecture)
    with torch.random.fork_rng(), transformers_silent():
        torch.manual_seed(0)
        model = toy_model(architecture, len(tokenizer))
        if trained:
            _train(model, tokenizer, documents)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def toy_tokenizer(texts: Sequence[str], architecture: str = "bert") -> Any:
    """WordPiece, for RoBERTa byte-level BPE and for its relatives Unigram, with a vocabulary learned on the texts."""
    if architecture == "roberta":
        return _byte_level(texts)
    if architecture in UNIGRAM_SPECIAL:
        return _unigram(texts, UNIGRAM_SPECIAL[architecture])
    return learn_tokenizer(texts, 300, MAX_TOKENS)


def _unigram(texts: Sequence[str], special: Sequence[str]) -> Any:
    """As `tokenizer.json` holds a SentencePiece model: the words of the texts, each third in two pieces, and letters.

    Written down and not learned, since the trainer makes little more than letters of so few different words.
    """
    pieces = dict.fromkeys(special, 0.0)
    for number, (word, count) in enumerate(sorted(Counter(" ".join(texts).split()).items())):
        half = len(word) // 2 if number % 3 == 0 else len(word)
        pieces |= {piece: math.log(count) - 12 for piece in (f"▁{word[:half]}", word[half:]) if piece}
    for letter in "▁abcdefghijklmnopqrstuvwxyz":
        pieces.setdefault(letter, -20.0)
    tokenizer = Tokenizer(models.Unigram(list(pieces.items()), unk_id=special.index("<unk>")))
    tokenizer.add_special_tokens(list(special))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    first, last = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", first), ("</s>", last)]
    )
    return _with_names(tokenizer)


def _byte_level(texts: Sequence[str]) -> Any:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return _with_names(tokenizer)


def _with_names(tokenizer: Tokenizer) -> Any:
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    names |= {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_TOKENS, **names)


def toy_model(architecture: str, vocab_size: int, **settings: Any) -> Any:
    """A tiny classifier with weights from torch's generator; `settings` replace those of its configuration."""
    labels = {
        "vocab_size": vocab_size,
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: index for index, label in enumerate(LABELS)},
        "problem_type": "multi_label_classification",
        "amnestic_thresholds": [0.5] * len(LABELS),
        "amnestic_max_tokens": MAX_TOKENS,
        "max_position_embeddings": MAX_TOKENS + 8,
        # Wider than BERT's 0.02, which is for a width of 768; see `small_bert`.
        "initializer_range": 0.1,
    }
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if architecture == "distilbert":
        shape = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "dropout": 0.0, "attention_dropout": 0.0}
        shape["seq_classif_dropout"] = 0.0
    if architecture == "electra":
        # Narrower than the layers, as in the small ELECTRA.
        shape["embedding_size"] = 24
    config = CONFIG_MAPPING[architecture](**{**labels, **shape, **settings})
    return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)](config).eval()


def in_float64(model: Twin) -> Twin:
    """The same model with weights in double precision, for comparisons to many digits."""
    return replace(
        model,
        encoder=copy.deepcopy(model.encoder).double(),
        table=model.table.double(),
        head_weight=model.head_weight.double(),
        head_bias=model.head_bias.double(),
    )


def _train(model: Any, tokenizer: Any, documents: Sequence[Document], epochs: int = 12) -> None:
    truth = torch.from_numpy(corpora.truth(documents, LABELS)).float()
    encoded = tokenizer([document.text for document in documents], truncation=True, max_length=MAX_TOKENS)["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    # Sums of so few numbers gain nothing from threads, and two test processes that train at once fight over the cores.
    torch.set_num_threads(1)
    for _ in range(epochs):
        for rows in torch.randperm(len(encoded)).split(32):
            ids, mask = _collate([encoded[row] for row in rows], tokenizer.pad_token_id)
            loss = binary_cross_entropy_with_logits(model(input_ids=ids, attention_mask=mask).logits, truth[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


def _collate(encoded: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows: Iterator[torch.Tensor] = (torch.tensor(ids) for ids in encoded)
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(ids) for ids in encoded])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()
