"""Pretrain the language model that comes with the package, on what programmers wrote about their libraries.

    python tools/pretrain_language_model.py --work ~/language fetch     # wheels from the package index, about 300 MB
    python tools/pretrain_language_model.py --work ~/language collect   # about 3.4 million words
    python tools/pretrain_language_model.py --work ~/language train     # half an hour on one core
    python tools/pretrain_language_model.py --work ~/language publish   # half precision, into the package

It reads the docstrings of some thirty open source packages and of Python itself, Python's manual (put its pages into `WORK/html`; Debian has them in
`python3-doc`), and some of what Amazon wrote about its services. Code and names are masked as in the stand-in for IMDB. The four libraries that lesson 9
tells apart are left out, and so is each paragraph that occurs in one of them, so the model has seen none of the lesson's texts.
"""
from __future__ import annotations

import argparse
import ast
import gzip
import html
import json
import random
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import coursekit.text.learner
from coursekit.samples.docstrings import LABELS, PARAGRAPH, SKIPPED, docstrings, mask, paragraphs

WHEELS = """altair astropy biopython bokeh dask distributed django gensim geopandas jax keras librosa mne nilearn nltk numpy pydantic pymc scikit-image
scikit-learn scipy scrapy shapely sphinx sqlalchemy statsmodels sunpy transformers twisted xarray yt botocore""".split()
INSTALLED = ("torch", "IPython", "jupyter_server", "notebook", "fsspec")
SERVICE_WORDS = 700_000  # of botocore, which has far more than all the others
SIZES = {"emb_sz": 200, "n_hid": 400, "n_layers": 2}
WEIGHTS = Path(coursekit.text.learner.__file__).with_name("english.safetensors")


def fetch(work: Path) -> None:
    "Download the wheels."
    subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--prefer-binary", "-d", str(work / "wheels"), *WHEELS], check=True)


def of_source(source: bytes) -> Iterator[list[str]]:
    "The paragraphs of each docstring."
    try:
        yield from (paragraphs(doc) for _, doc in docstrings(ast.parse(source)))
    except (SyntaxError, ValueError):  # a template, or a file for another Python
        return


def of_folder(root: Path) -> Iterator[list[str]]:
    "The paragraphs of each docstring of a folder of source files."
    for file in sorted(root.rglob("*.py")):
        if not SKIPPED.search(str(file.relative_to(root))) and "-packages" not in str(file.relative_to(root)):
            yield from of_source(file.read_bytes())


def of_wheel(file: Path) -> Iterator[list[str]]:
    "The paragraphs of each docstring of a wheel."
    with zipfile.ZipFile(file) as z:
        for name in sorted(n for n in z.namelist() if n.endswith(".py") and not SKIPPED.search(n)):
            yield from of_source(z.read(name))


def of_manual(root: Path) -> Iterator[list[str]]:
    "Six paragraphs at a time of the pages of a manual."
    from bs4 import BeautifulSoup

    for file in sorted(root.rglob("*.html")):
        page = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")
        found = [p.get_text() for p in (page.find("div", class_="body") or page).find_all("p")]
        yield from (found[i : i + 6] for i in range(0, len(found), 6))


def of_services(file: Path) -> Iterator[list[str]]:
    "The paragraphs about each operation and field of a service, services in random order."
    with zipfile.ZipFile(file) as z:
        names = sorted(n for n in z.namelist() if "service-2.json" in n)
        for name in random.Random(0).sample(names, len(names)):
            raw = z.read(name)
            for said in re.findall(r'"documentation":("(?:[^"\\]|\\.)*")', (gzip.decompress(raw) if name.endswith(".gz") else raw).decode()):
                plain = re.sub(r"<code>.*?</code>", "xxcode", json.loads(said))
                yield [html.unescape(re.sub(r"<[^>]+>", "", p)) for p in re.findall(r"<p>(.*?)</p>", plain, flags=re.DOTALL)]


def kept(documents: Iterable[list[str]], seen: set[str], limit: float = float("inf")) -> Iterator[str]:
    "Masked texts of at least eight words, no paragraph twice, until `limit` words."
    for document in documents:
        masked = [mask(" ".join(p.split())) for p in document]
        new = [p for p in dict.fromkeys(masked) if p not in seen and re.match(r"[A-Z]", p) and re.search(r"[.!?]$", p)]
        new = [p for p in new if (w := p.split()) and len(w) > 3 and sum(x.startswith("xxcode") for x in w) <= 0.3 * len(w)]
        seen.update(new)
        n = sum(len(p.split()) for p in new)
        if n >= 8:
            yield PARAGRAPH.join(new)
            limit -= n
        if limit < 0:
            return


def collect(work: Path) -> None:
    "Write `texts.json`."
    site = Path(sysconfig.get_paths()["purelib"])
    seen = {mask(p) for label in LABELS for document in of_folder(site / label) for p in document}  # what the lesson's texts consist of
    print(f"{len(seen):,} paragraphs of {', '.join(LABELS)} are left out", flush=True)
    texts = []
    for name, documents in [
        ("Python's manual", of_manual(work / "html")), ("the standard library", of_folder(Path(sysconfig.get_paths()["stdlib"]))),
        *((p, of_folder(site / p)) for p in INSTALLED),
        *((f.name.split("-")[0], of_services(f) if f.name.startswith("botocore") else of_wheel(f)) for f in sorted((work / "wheels").glob("*.whl"))),
    ]:
        found = list(kept(documents, seen, SERVICE_WORDS if name == "botocore" else float("inf")))
        texts += found
        print(f"{name:22} {sum(len(t.split()) for t in found):>9,} words", flush=True)
    random.Random(0).shuffle(texts)
    print(f"{'all':22} {sum(len(t.split()) for t in texts):>9,} words", flush=True)
    (work / "texts.json").write_text(json.dumps(texts), encoding="utf-8")


def train(work: Path) -> None:
    "Train on `texts.json`, and write `WORK/english.safetensors`."
    import pandas as pd

    from coursekit.text.all import AWD_LSTM, Perplexity, TextDataLoaders, accuracy, language_model_learner

    table = pd.DataFrame({"text": json.loads((work / "texts.json").read_text(encoding="utf-8"))})
    dls = TextDataLoaders.from_df(table, work, valid_pct=0.01, seed=0, text_col="text", is_lm=True, bs=32, seq_len=64, max_vocab=8000)
    learn = language_model_learner(dls, AWD_LSTM, config=SIZES, drop_mult=0.15, metrics=[accuracy, Perplexity()], seed=0)
    learn.fit_one_cycle(2, 6e-3, moms=(0.8, 0.7, 0.8))
    print(learn.save_encoder(work.absolute() / "english"))


def publish(work: Path) -> None:
    "Write the weights into the package in half precision."
    from coursekit.text.text_learner import read_encoder
    from coursekit.training.weights import write_tensors

    tensors, header = read_encoder(work.absolute() / "english.safetensors", "publish")
    del header["sha256"]
    write_tensors(WEIGHTS, {k: v.half() for k, v in tensors.items()}, header | {"made by": "tools/pretrain_language_model.py"})
    print(f"{WEIGHTS.name}: {WEIGHTS.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=[f.__name__ for f in (fetch, collect, train, publish)])
    parser.add_argument("--work", type=Path, required=True, help="folder for what is downloaded and made")
    args = parser.parse_args()
    (args.work / "wheels").mkdir(parents=True, exist_ok=True)
    globals()[args.step](args.work)


if __name__ == "__main__":
    main()
