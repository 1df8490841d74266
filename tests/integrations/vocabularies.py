"""Small vocabularies for the tokenizers of transformers, as files, and text models for them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BERT_VOCABULARY_SIZE = 1100
CLIP_VOCABULARY_SIZE = 514
SMALL_LAYER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def save_bert_tokenizer(folder: Path, words: Sequence[str]) -> None:
    """A BERT tokenizer that knows these words; its special tokens are where BERT's are.

    Grounding DINO tells phrases apart by those numbers.
    """
    tokens = [f"[unused{number}]" for number in range(BERT_VOCABULARY_SIZE)]
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?"}
    for number, token in {**special, **dict(enumerate(words, 1030))}.items():
        tokens[number] = token
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens))
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def save_clip_tokenizer(folder: Path, max_length: int) -> None:
    """A CLIP tokenizer whose tokens are single letters."""
    letters = [chr(number) for number in range(256, 512)]  # stand-ins for bytes that are no letters
    letters[33:127] = [chr(number) for number in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>"]
    tokens.append("<|endoftext|>")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_length}
    config |= {"bos_token": tokens[-2], "eos_token": tokens[-1], "pad_token": tokens[-1]}
    config["unk_token"] = tokens[-1]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def clip_text_config(max_length: int) -> dict[str, Any]:
    """A text model for :func:`save_clip_tokenizer`."""
    return {
        "vocab_size": CLIP_VOCABULARY_SIZE,
        "max_position_embeddings": max_length,
        "bos_token_id": CLIP_VOCABULARY_SIZE - 2,
        "eos_token_id": CLIP_VOCABULARY_SIZE - 1,
        "pad_token_id": CLIP_VOCABULARY_SIZE - 1,
        **SMALL_LAYER,
    }
