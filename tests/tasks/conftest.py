"""Shared by the tests of tasks: the real data folder, a small SNI record, a tokenizer of words."""

import json
import pathlib

import pytest

DATA = pathlib.Path(__file__).parents[2] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def real_sni():
    """The folder with real SNI tasks."""
    folder = DATA / "sni"
    if not folder.is_dir():
        pytest.skip("the real SNI files (../shared/data/sni) are not on this machine")
    return folder


class T5Pieces:
    """T5's vocabulary straight from sentencepiece; measures whole texts only."""

    def __init__(self, path):
        import sentencepiece

        self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def encode(self, text):
        return [*self._model.encode(text), 1]

    def decode(self, ids, skip_special_tokens=True):
        return self._model.decode([i for i in ids if i > 2])


@pytest.fixture(scope="session")
def t5_tokenizer():
    """T5's real tokenizer."""
    path = DATA / "tokenizers" / "t5" / "spiece.model"
    if not path.is_file():
        pytest.skip("T5's vocabulary (../shared/data/tokenizers/t5) is not on this machine")
    return T5Pieces(path)


class Words:
    """A tokenizer whose tokens are the words between spaces, and one end mark."""

    def __init__(self):
        self.ids = {"</s>": 1}
        self.encoded = []

    def encode(self, text):
        self.encoded.append(text)
        return [self.ids.setdefault(word, len(self.ids) + 1) for word in text.split()] + [1]

    def decode(self, ids, skip_special_tokens=True):
        words = {number: word for word, number in self.ids.items()}
        return " ".join(words[number] for number in ids if number != 1 or not skip_special_tokens)


@pytest.fixture
def words():
    """A fresh tokenizer of words."""
    return Words()


def sni_record(num_instances=3, **changes):
    """The content of a valid SNI file; `changes` replace fields (underscores as spaces), None removes one."""
    record = {
        "Contributors": ["A"],
        "Source": ["made_up"],
        "URL": ["http://example.org"],
        "Categories": ["Question Answering", "Other Kind"],
        "Reasoning": [],
        "Definition": ["Answer the question."],
        "Input_language": ["English"],
        "Output_language": ["English"],
        "Instruction_language": ["English"],
        "Domains": ["Wikipedia"],
        "Positive Examples": [{"input": "1+1?", "output": "2", "explanation": "Adding."}],
        "Negative Examples": [{"input": "1+2?", "output": "4", "explanation": "It is 3."}],
        "Instances": [{"id": f"i{n}", "input": f"{n}+0?", "output": [str(n)]} for n in range(num_instances)],
    }
    for field, value in changes.items():
        field = field if field in record else field.replace("_", " ")
        if value is None:
            del record[field]
        else:
            record[field] = value
    return record


@pytest.fixture
def sni_folder(tmp_path):
    """A function that writes tasks (name -> content) in the official layout and returns the folder."""

    def write(tasks, **lists):
        (tmp_path / "tasks").mkdir(exist_ok=True)
        for name, record in tasks.items():
            text = record if isinstance(record, str) else json.dumps(record)
            (tmp_path / "tasks" / f"{name}.json").write_text(text, encoding="utf-8")
        (tmp_path / "splits" / "default").mkdir(parents=True, exist_ok=True)
        for name, members in lists.items():
            (tmp_path / "splits" / "default" / f"{name}_tasks.txt").write_text("\n".join(members) + "\n")
        return tmp_path

    return write


@pytest.fixture
def record():
    """The function that makes a valid SNI record."""
    return sni_record
