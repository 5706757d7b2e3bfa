#!/usr/bin/env python3
"""Lesson 9 with more seeds: what ULMFiT's steps are worth with 40 labeled texts, beside the classifier alone and counting words.

    python benchmarks/text_transfer.py --seeds 6

The bundled language model (step 1) reads the unlabeled texts for an epoch (step 2, once), and the classifier is trained layer by layer (step 3, once per
seed). "alone" is the same network from random weights, with more epochs. Data, settings and the texts to be judged on are those of the lesson.
"""
from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import pandas as pd
from seeds import mean_line

from coursekit.course.compare import interval
from coursekit.text.all import (
    AWD_LSTM,
    TextDataLoaders,
    URLs,
    accuracy,
    course_data,
    get_text_files,
    language_model_learner,
    text_classifier_learner,
)


def read(path: Path, folder: str) -> pd.DataFrame:
    files = get_text_files(path / folder)
    return pd.DataFrame({"text": [f.read_text(encoding="utf-8") for f in files], "label": [f.parent.name for f in files]})


def thaw(learn, lr: float = 2e-2) -> None:
    "Step 3: the head, then one layer more at a time."
    for k in (1, 2, 3):
        learn.freeze_to(-k)
        learn.fit_one_cycle(3, slice(lr / 2**k / 2.6**2, lr / 2 ** (k - 1)), moms=(0.8, 0.7, 0.8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6, help="how many seeds, 0, 1, ... (default 6)")
    args = parser.parse_args()
    path = course_data(URLs.IMDB)
    train, test, unlabeled = read(path, "train"), read(path, "test")[::2], read(path, "unsup")
    shuffled = train.sample(frac=1, random_state=0).groupby("label")
    few = pd.concat([shuffled.head(10).assign(valid=False), shuffled.tail(10).assign(valid=True)])
    dls_lm = TextDataLoaders.from_df(unlabeled[["text"]], path, text_col="text", valid_pct=0.05, is_lm=True, max_vocab=5000, bs=16, seq_len=50, seed=42)
    lm = language_model_learner(dls_lm, AWD_LSTM, pretrained=True, drop_mult=0.3, seed=42)
    lm.unfreeze()
    lm.fit_one_cycle(1, 3e-3, moms=(0.8, 0.7, 0.8))
    dls = TextDataLoaders.from_df(few, path, text_col="text", label_col="label", valid_col="valid", text_vocab=dls_lm.text_vocab, bs=8, seed=42)
    judges = dls.test_dl(test, with_labels=True)
    sizes = {k: lm.model.spec.config[k] for k in ("emb_sz", "n_hid", "n_layers")}
    shares: dict[str, list[float]] = {"alone": [], "three steps": []}
    with tempfile.TemporaryDirectory() as folder:
        reader = lm.save_encoder(Path(folder, "reader"))
        for seed in range(args.seeds):
            for name, start in (("alone", None), ("three steps", reader)):
                cpu = time.process_time()
                learn = text_classifier_learner(dls, AWD_LSTM, config=sizes, pretrained=start, metrics=accuracy, seed=seed)
                with learn.no_bar():
                    thaw(learn) if start else learn.fit_one_cycle(12, 1e-2)
                shares[name].append(100 * learn.validate(judges)[-1])
                print(f"seed {seed}, {name}: {shares[name][-1]:.1f}% of {len(test):,} right, {time.process_time() - cpu:.0f} s of CPU time", flush=True)
    for name, values in shares.items():
        print(mean_line(values, f"{name}, percent right", ".1f"))
    mean, half = interval([b - a for a, b in zip(*shares.values())])
    print(f"the three steps are ahead by {mean:.1f} ± {half:.1f} points (95% interval of the differences, seed by seed)")


if __name__ == "__main__":
    main()
