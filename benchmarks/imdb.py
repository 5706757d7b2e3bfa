#!/usr/bin/env python3
"""Is a movie review positive? 25,000 labelled reviews to learn from, 25,000 to be judged on.

    COURSEKIT_MIRROR=../shared/data python benchmarks/imdb.py tfidf      # count words and pairs of words, logistic regression
    COURSEKIT_MIRROR=../shared/data python benchmarks/imdb.py ulmfit     # a language model of the training reviews, then a classifier

The network reads the beginning and the end of a long review, `--words` words in all, and so do both of its training steps. The word counts read all of
it. The language model never sees a test review.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import torch

from coursekit.data.download import URLs, untar_data


def reviews(path: Path, part: str) -> tuple[list[str], list[str]]:
    """Texts and labels of a part. Those of `unsup` have none."""
    files = sorted((path / part).rglob("*.txt"))
    return [f.read_text(encoding="utf-8") for f in files], [f.parent.name for f in files]


def shorten(text: str, words: int) -> str:
    """The beginning and the end of a text: a quarter of the words from its beginning, the others from its end."""
    found = text.split()
    if len(found) <= words:
        return text
    return " ".join(found[: words // 4]) + " … " + " ".join(found[words // 4 - words :])


def tfidf(path: Path, args: argparse.Namespace) -> None:
    """Count words and pairs of words. C is chosen on a fifth of the training reviews."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    start = time.process_time()
    (texts, labels), (test_texts, test_labels) = reviews(path, "train"), reviews(path, "test")
    for ngrams in (1, 2):
        words = TfidfVectorizer(ngram_range=(1, ngrams), min_df=3, sublinear_tf=True)
        x, test = words.fit_transform(texts), words.transform(test_texts)
        fit, held, y, y_held = train_test_split(x, np.array(labels), test_size=0.2, random_state=args.seed, stratify=labels)
        scores = {c: LogisticRegression(C=c, max_iter=300).fit(fit, y).score(held, y_held) for c in (1, 3, 10, 30)}
        best = max(scores, key=scores.get)
        model = LogisticRegression(C=best, max_iter=300).fit(x, labels)
        print(f"up to {ngrams} words: {x.shape[1]:,} features, C={best} ({scores[best]:.4f} on a fifth), {model.score(test, test_labels):.4f} of "
              f"{len(test_labels):,} test reviews right; {time.process_time() - start:.0f} s of CPU time so far", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["tfidf", "ulmfit"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args}", flush=True)
    {"tfidf": tfidf}[args.what](untar_data(URLs.IMDB), args)


if __name__ == "__main__":
    main()
