#!/usr/bin/env python3
"""Is a movie review positive? 25,000 labelled reviews to learn from, 25,000 to be judged on.

    COURSEKIT_MIRROR=../shared/data python benchmarks/imdb.py tfidf      # count words and pairs of words, logistic regression
    COURSEKIT_MIRROR=../shared/data python benchmarks/imdb.py ulmfit     # a language model of the training reviews, then a classifier
    COURSEKIT_MIRROR=../shared/data python benchmarks/imdb.py tokens     # how long the words of all 50,000 reviews take to tell apart

The network reads the beginning and the end of a long review, `--words` words in all, and so do both of its training steps. The word counts read all of
it. The language model never sees a test review.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from coursekit.data.download import URLs, untar_data
from coursekit.text.awd_lstm import AWD_LSTM
from coursekit.text.corpus import tokenize_texts
from coursekit.text.data import TextDataLoaders
from coursekit.text.learner import language_model_learner, text_classifier_learner
from coursekit.text.tokens import Tokenizer
from coursekit.training.callback import Callback
from coursekit.training.metrics import Perplexity, accuracy


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


def tokens(path: Path, args: argparse.Namespace) -> None:
    """Read and tokenize all labelled reviews, as the first loader over them does."""
    sources = sorted(f for part in ("train", "test") for f in (path / part).rglob("*.txt"))
    start, cpu = time.perf_counter(), time.process_time()
    corpus = tokenize_texts(sources, Tokenizer())
    print(f"{len(sources):,} reviews, {int(corpus.lengths.sum()):,} tokens: {time.perf_counter() - start:.1f} s by the clock, "
          f"{time.process_time() - cpu:.1f} s of CPU time in this process")


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


class Tempo(Callback):
    """Prints the loss and the tokens per second, of CPU time and by the clock, every so many batches."""

    def __init__(self, every: int = 200):
        self.every, self.batches, self.tokens, self.losses = every, 0, 0, []
        self.cpu, self.clock = time.process_time(), time.perf_counter()

    def after_batch(self, learn) -> None:
        state = learn.state
        if not state.training:
            return
        self.batches += 1
        self.tokens += state.batch.xs[0].numel()
        self.losses.append(float(state.loss.detach()))
        if self.batches % self.every == 0:
            cpu, clock = time.process_time() - self.cpu, time.perf_counter() - self.clock
            print(f"  batch {self.batches}: loss {np.mean(self.losses[-self.every:]):.4f}; {self.tokens:,} tokens in {cpu:.0f} s of CPU time and {clock:.0f} s "
                  f"by the clock: {self.tokens / cpu:,.0f} and {self.tokens / clock:,.0f} tokens/s", flush=True)


def language_model(path: Path, args: argparse.Namespace) -> tuple[list[str], Path]:
    """Train a language model on the training reviews and the unlabelled ones, save its encoder, and return its words and the file."""
    texts = [shorten(t, args.words) for part in ("train", "unsup") for t in reviews(path, part)[0]]
    order = np.random.default_rng(args.seed).permutation(len(texts))[: args.lm_texts]
    dls = TextDataLoaders.from_df(pd.DataFrame({"text": [texts[i] for i in order]}), path, valid_pct=0.02, seed=args.seed, text_col="text", is_lm=True,
                                  bs=args.bs, seq_len=72, max_vocab=args.vocab)
    learn = language_model_learner(dls, AWD_LSTM, config=args.sizes, drop_mult=args.lm_drop, metrics=[accuracy, Perplexity()], seed=args.seed, cbs=Tempo())
    print(f"language model: {len(dls.train.dataset):,} tokens, {len(dls.text_vocab):,} words, {sum(p.numel() for p in learn.model.parameters()):,} parameters, "
          f"{learn.autocast_dtype or torch.float32}", flush=True)
    learn.fit_one_cycle(args.lm_epochs, args.lm_lr, moms=(0.8, 0.7, 0.8))
    return dls.text_vocab, learn.save_encoder(args.encoder.absolute())


def ulmfit(path: Path, args: argparse.Namespace) -> None:
    """The language model, then the classifier, layer by layer."""
    start = time.process_time()
    words, file = language_model(path, args)
    print(f"{time.process_time() - start:.0f} s of CPU time so far", flush=True)
    train, test = (pd.DataFrame({"text": [shorten(t, args.words) for t in texts], "label": labels})
                   for texts, labels in (reviews(path, part) for part in ("train", "test")))
    dls = TextDataLoaders.from_df(train, path, valid_pct=0.02, text_col="text", label_col="label", text_vocab=words, bs=args.bs, seed=args.seed)
    learn = text_classifier_learner(dls, AWD_LSTM, pretrained=file, config=args.sizes, drop_mult=args.drop, metrics=accuracy, seed=args.seed, cbs=Tempo())
    learn.fit_gradually(args.epochs, args.lr)
    print(f"{time.process_time() - start:.0f} s of CPU time so far", flush=True)
    loss, right = learn.validate(dls.test_dl(test, with_labels=True))
    print(f"test: loss {loss:.4f}, {right:.4f} of {len(test):,} reviews right; {time.process_time() - start:.0f} s of CPU time in all", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["tfidf", "ulmfit", "tokens"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--words", type=int, default=200, help="words of a review that the network reads (default 200)")
    parser.add_argument("--vocab", type=int, default=10_000, help="words that the network knows (default 10000)")
    parser.add_argument("--lm-texts", type=int, default=30_000, help="reviews for the language model (default: all 30000 without test reviews)")
    parser.add_argument("--lm-epochs", type=int, default=1)
    parser.add_argument("--lm-lr", type=float, default=5e-3, help="learning rate of the language model (default 0.005)")
    parser.add_argument("--lm-drop", type=float, default=0.3, help="factor on the dropouts of the language model (default 0.3)")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of the whole classifier, after one for each of three stages (default 1)")
    parser.add_argument("--lr", type=float, default=2e-2, help="learning rate of the classifier's head (default 0.02)")
    parser.add_argument("--drop", type=float, default=0.5, help="factor on the dropouts of the classifier (default 0.5)")
    parser.add_argument("--bs", type=int, default=32, help="texts per batch (default 32)")
    parser.add_argument("--encoder", type=Path, default=Path("imdb_encoder"), help="file to save the language model's encoder in")
    args = parser.parse_args()
    args.sizes = {"emb_sz": 200, "n_hid": 400, "n_layers": 2}
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args}", flush=True)
    {"tfidf": tfidf, "ulmfit": ulmfit, "tokens": tokens}[args.what](untar_data(URLs.IMDB), args)


if __name__ == "__main__":
    main()
