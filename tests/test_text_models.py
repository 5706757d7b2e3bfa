"""Text models: what each dropout drops, equality with PyTorch, causality, long texts, memory, what travels in files, bad input."""

from __future__ import annotations

import copy
import math
import threading
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from helpers import raises, says
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coursekit.core import seeded
from coursekit.deploy.hub import load_learner
from coursekit.text.awd_lstm import AWD_LSTM, LanguageModel, LSTMLayer, fitted, lm_groups, new_texts
from coursekit.text.callbacks import ModelResetter, RNNRegularizer, activation_penalty
from coursekit.text.classifier import TextClassifier, classifier_groups, text_lengths
from coursekit.text.data import TextDataLoaders
from coursekit.text.dropouts import EmbeddingDropout, RNNDropout, WeightDropout
from coursekit.text.generate import generate, word_probs
from coursekit.text.learner import language_model_learner, text_classifier_learner
from coursekit.text.next_word import NextWordLoss, next_word_loss
from coursekit.text.text_learner import LMLearner, TextLearner, remapped
from coursekit.text.tokens import SPECIALS, CharTokenizer
from coursekit.text.transformer import Transformer
from coursekit.training.callback import Callback, CancelFitException
from coursekit.training.callbacks.checkpoint import Checkpoint
from coursekit.training.losses import CrossEntropyLossFlat
from coursekit.training.metrics import AverageMetric, Perplexity, accuracy, error_rate, top_k_accuracy
from coursekit.training.weights import read_tensors, write_tensors

SMALL = {"emb_sz": 12, "n_hid": 16, "n_layers": 2}
CONFIGS = {AWD_LSTM: SMALL, Transformer: {"emb_sz": 12, "n_layers": 2, "n_heads": 2}}
ARCHS = pytest.mark.parametrize("arch", [AWD_LSTM, Transformer])


def reviews(n: int = 60) -> pd.DataFrame:
    texts = {"good": "the film was a joy and the cast was great", "bad": "the plot was dull and the end was a bore"}
    return pd.DataFrame([(" ".join([text] * (1 + i % 3)), name) for i in range(n // 2) for name, text in texts.items()], columns=["text", "label"])


def loaders(path: Path, *, is_lm: bool = False, **options) -> TextDataLoaders:
    options = {"seed": 0, "bs": 8, "device": "cpu", "text_col": "text", "label_col": "label", **({"seq_len": 8} if is_lm else {})} | options
    return TextDataLoaders.from_df(reviews(), path, is_lm=is_lm, **options)


def writer(path: Path, arch=AWD_LSTM, **options) -> LMLearner:
    learn = language_model_learner(loaders(path, is_lm=True), arch, **{"config": CONFIGS[arch], "seed": 0, "metrics": [accuracy, Perplexity()]} | options)
    learn.progress = False
    return learn


def judge(path: Path, arch=AWD_LSTM, **options) -> TextLearner:
    vocab = options.pop("text_vocab", None)
    learn = text_classifier_learner(loaders(path, text_vocab=vocab), arch, **{"config": CONFIGS[arch], "seed": 0, "metrics": accuracy} | options)
    learn.progress = False
    return learn


def encoder(arch, vocab_sz: int = 30, **options) -> nn.Module:
    with seeded(0):
        return arch(vocab_sz, **CONFIGS[arch] | options).eval()


# ------------------------------------------------------------------------------------------------- the five dropouts


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 0.9), st.integers(0, 99))
def test_every_dropout_keeps_the_mean_and_drops_its_share(p: float, seed: int) -> None:
    emb = nn.Embedding(4000, 2)
    nn.init.ones_(emb.weight)
    with seeded(seed), torch.no_grad():
        found = {"features": RNNDropout(p)(torch.ones(20, 3, 200))[:, 0], "weights": WeightDropout(p)(torch.ones(60, 70)),
                 "words": EmbeddingDropout(emb, p)(torch.arange(4000)[None])[0, :, :1]}
    for what, kept in found.items():
        n, share = kept.numel(), (kept == 0).float().mean().item()
        assert abs(share - p) <= 5 * math.sqrt(p * (1 - p) / n) + 1e-9, what
        assert torch.allclose(kept[kept != 0], torch.tensor(1 / (1 - p))), what


def test_where_the_dropouts_of_an_awd_lstm_are() -> None:
    """With one dropout switched on at p = 1, exactly what lies behind it is gone."""
    x = torch.randint(2, 30, (3, 7))
    for name in ("input_p", "hidden_p", "embed_p", "weight_p"):
        enc = encoder(AWD_LSTM, **{f"{k}_p": float(name == f"{k}_p") for k in ("input", "hidden", "embed", "weight")}).train()
        zeros = torch.zeros(3, 7, 12)
        inputs = enc.input_dp(enc.embed(x))
        first, _ = enc.layers[0](inputs)
        expected = {"input_p": enc.layers[1](enc.layers[0](zeros)[0])[0], "embed_p": enc.layers[1](enc.layers[0](zeros)[0])[0],
                    "hidden_p": enc.layers[1](torch.zeros_like(first))[0]}
        assert inputs.eq(0).all() == (name in ("input_p", "embed_p")), name
        if name in expected:
            assert torch.allclose(enc(x)[0], expected[name]), name
        else:  # without recurrent weights, only the memory joins the words
            alone, forgetful = enc.layers[0](inputs, (torch.randn(3, 16), torch.zeros(3, 16)))[0], enc.layers[0](inputs)[0]
            assert torch.allclose(alone, forgetful)
    model = LanguageModel(encoder(AWD_LSTM), output_p=1.0).train()
    assert torch.equal(model(x), model.bias.expand(3, 7, 30))


def test_dropouts_do_nothing_in_eval_mode() -> None:
    model, x = LanguageModel(encoder(AWD_LSTM, weight_p=0.9, input_p=0.9, hidden_p=0.9, embed_p=0.9), output_p=0.9).eval(), torch.randint(2, 30, (2, 5))
    plain = LanguageModel(encoder(AWD_LSTM, weight_p=0.0, input_p=0.0, hidden_p=0.0, embed_p=0.0), output_p=0.0)
    assert torch.equal(model(x), plain(x))


def test_the_weight_dropout_of_a_batch_is_the_same_at_every_word_and_spares_the_parameter() -> None:
    with seeded(0):
        layer, x = LSTMLayer(3, 4, weight_p=0.5).train(), torch.randn(2, 6, 3)
    before = layer.weight_hh.detach().clone()
    with seeded(1):
        out, _ = layer(x)
    with seeded(1):
        weight = F.dropout(layer.weight_hh.detach(), 0.5)
    other = copy.deepcopy(layer).eval()
    other.weight_hh.data = weight
    assert torch.allclose(out, other(x)[0], atol=1e-6) and torch.equal(layer.weight_hh, before)
    out.sum().backward()
    assert torch.equal(layer.weight_hh.grad == 0, weight == 0)  # a dropped weight gets no gradient


@pytest.mark.parametrize("make", [RNNDropout, WeightDropout, lambda p: EmbeddingDropout(nn.Embedding(3, 2), p)])
def test_a_dropout_that_is_no_share_is_refused(make) -> None:
    with raises(ValueError, "p", "1.5", "from 0 to 1"):
        make(1.5)


# ------------------------------------------------------------------------------------------------- layers and encoders


@pytest.mark.parametrize("frozen", [False, True])
def test_the_layer_is_pytorchs_lstm_forward_and_backward(frozen: bool) -> None:
    with seeded(0):
        ours, x = LSTMLayer(5, 7), torch.randn(3, 9, 5, requires_grad=True)
    theirs = nn.LSTM(5, 7, batch_first=True)
    theirs.load_state_dict({"weight_ih_l0": ours.weight_ih, "weight_hh_l0": ours.weight_hh, "bias_ih_l0": ours.bias, "bias_hh_l0": torch.zeros(28)})
    state = torch.randn(3, 7), torch.randn(3, 7)
    if frozen:  # as by `freeze`: gradients still have to reach what is below
        ours.requires_grad_(False).eval()
    (out, _), (expected, _) = ours(x, state), theirs(x, tuple(s[None] for s in state))
    assert torch.allclose(out, expected, atol=1e-6)
    a, b = (torch.autograd.grad(o.pow(2).sum(), [x, *([] if frozen else w)]) for o, w in ((out, list(ours.parameters())), (expected, list(theirs.parameters())[:3])))
    assert all(torch.allclose(p, q, atol=1e-5) for p, q in zip(a, b))


@ARCHS
def test_pieces_of_a_text_give_the_whole(arch) -> None:
    enc, x = encoder(arch), torch.randint(2, 30, (3, 20))
    whole, _ = enc(x)
    for cuts in ([1] * 20, [7, 13], [19, 1]):
        state, parts = None, []
        for piece in x.split(cuts, 1):
            out, state = enc(piece, state)
            parts.append(out)
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)


@ARCHS
@settings(max_examples=10, deadline=None)
@given(st.integers(1, 14), st.integers(0, 99))
def test_the_future_does_not_leak(arch, k: int, seed: int) -> None:
    enc = encoder(arch)
    with seeded(seed):
        x, later = torch.randint(2, 30, (2, 15)), torch.randint(2, 30, (2, 15 - k))
    other = torch.cat([x[:, :k], later], 1)
    assert torch.allclose(enc(x)[0][:, :k], enc(other)[0][:, :k], atol=1e-5)


def test_the_transformer_remembers_as_much_as_it_shall() -> None:
    enc = encoder(Transformer, mem_len=4)
    _, state = enc(torch.randint(2, 30, (2, 9)))
    assert {t.shape[1] for layer in state for t in layer} == {4}
    _, state = encoder(Transformer, mem_len=0)(torch.randint(2, 30, (2, 9)))
    assert {t.shape[1] for layer in state for t in layer} == {0}
    with raises(ValueError, "n_heads", "5", "12"):
        Transformer(30, emb_sz=12, n_heads=5)


# ------------------------------------------------------------------------------------------------- the language model


@ARCHS
def test_the_decoder_is_the_embedding(arch) -> None:
    model = LanguageModel(encoder(arch)).eval()
    x = torch.randint(2, 30, (2, 5))
    out, _ = model.encoder(x)
    assert torch.allclose(model(x), out @ model.encoder.embed.emb.weight.T + model.bias, atol=1e-5)
    assert sum(p.shape == (30, 12) for p in model.parameters()) == 1
    own = sorted(id(p) for p in model.parameters())
    assert sorted(id(p) for g in lm_groups(model) for m in g for p in ([m] if isinstance(m, nn.Parameter) else m.parameters())) == own


@ARCHS
def test_state_is_carried_reset_and_fitted_to_the_batch(arch) -> None:
    model, x = LanguageModel(encoder(arch)).eval(), torch.randint(2, 30, (4, 10))
    whole = model(x)
    model.reset()
    parts = torch.cat([model(x[:, :6]), model(x[:, 6:])], 1)
    assert torch.allclose(parts, whole, atol=1e-5)
    assert not any(t.requires_grad for layer in model.state for t in layer)
    assert len(fitted(model.state, 2)[0][0]) == 2 and len(fitted(model.state, 7)[0][0]) == 7
    assert fitted(None, 3) is None
    assert model(x[:2]).shape == (2, 10, 30) and model(x).shape == (4, 10, 30)
    model.reset()
    assert torch.allclose(model(x), whole, atol=1e-5)


def test_eval_mode_and_threads_leave_the_state_of_training_alone() -> None:
    model, x = LanguageModel(encoder(AWD_LSTM), output_p=0.0), torch.randint(2, 30, (4, 10))
    model.train()(x)
    before = model.state
    model.eval()(x)
    assert model.train().state is before
    outs = []

    def read() -> None:
        with new_texts():
            outs.append(model(x))
            model(x)

    model.eval()
    threads = [threading.Thread(target=read) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.allclose(o, outs[0]) for o in outs) and model.train().state is before
    twin = copy.deepcopy(model)
    assert twin.state is None and twin.activations == []


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(2, 40), st.booleans(), st.integers(0, 99))
def test_next_word_loss_is_cross_entropy(bs: int, steps: int, n: int, half: bool, seed: int) -> None:
    with seeded(seed):
        scores, words = 3 * torch.randn(bs, steps, n), torch.randint(n, (bs, steps))
        words[torch.rand(bs, steps) < 0.3] = -100
    words[0, 0] = 0
    scores = (scores.bfloat16() if half else scores).requires_grad_()
    loss, expected = next_word_loss(scores, words), F.cross_entropy(scores.float().flatten(0, 1), words.flatten())
    a, b = (torch.autograd.grad(3 * part, scores)[0].float() for part in (loss, expected))
    assert loss.dtype == torch.float32 and torch.allclose(loss, expected, rtol=1e-5)
    assert torch.allclose(a, b, atol=2e-2 if half else 1e-5)


def test_next_word_loss_in_portions(monkeypatch) -> None:
    scores, words = torch.randn(7, 11, requires_grad=True), torch.randint(11, (7,))
    grads = []
    for portion in (1, 25, 1 << 18):
        monkeypatch.setattr(NextWordLoss, "portion", portion)
        grads += torch.autograd.grad(next_word_loss(scores, words), scores)
    assert all(torch.allclose(g, grads[0]) for g in grads)


# ------------------------------------------------------------------------------------------------- the classifier


@ARCHS
@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 50), st.integers(1, 50), st.integers(0, 99))
def test_a_text_gets_the_same_answer_alone_as_in_any_batch(arch, lengths: list[int], bptt: int, max_len: int, seed: int) -> None:
    with seeded(seed):
        model = TextClassifier(encoder(arch), 3, bptt=bptt, max_len=max_len).eval()
        x = torch.ones(len(lengths), max([*lengths, 1]), dtype=torch.int64)
        for row, n in zip(x, lengths):
            row[:n] = torch.randint(2, 30, (n,))
    assert text_lengths(x).tolist() == [max(1, n) for n in lengths]
    out = model(x)
    for i, n in enumerate(lengths):
        assert torch.allclose(model(x[i:i + 1, :max(1, n)]), out[i:i + 1], atol=1e-5)
    model.bptt = 1000
    assert torch.allclose(model(x), out, atol=1e-5)


def test_pooling_is_last_max_and_mean() -> None:
    model = TextClassifier(encoder(AWD_LSTM), 2, bptt=4)
    seen = []
    model.head.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    x = torch.randint(2, 30, (2, 11))
    x[0, 6:] = 1
    model.eval()(x)
    for row, pooled in zip(x, seen[0]):
        out = model.encoder(row[row != 1][None])[0][0]
        assert torch.allclose(pooled, torch.cat([out[-1], out.max(0).values, out.mean(0)]), atol=1e-5)


def test_only_the_end_of_a_long_text_gets_gradients() -> None:
    """And texts of other lengths in the same batch get them for their own end."""
    model = TextClassifier(encoder(AWD_LSTM, 60), 2, bptt=5, max_len=10).eval()
    x = torch.ones(2, 30, dtype=torch.int64)
    x[0], x[1, :12] = torch.arange(2, 32), torch.arange(40, 52)
    model(x).sum().backward()
    reached = model.encoder.embed.emb.weight.grad.abs().sum(1) > 0
    assert reached[2:32].tolist() == [False] * 20 + [True] * 10
    assert reached[40:52].tolist() == [False] * 5 + [True] * 7


def test_the_penalty_does_not_see_padding() -> None:
    model = TextClassifier(encoder(AWD_LSTM), 2, bptt=4).train()
    x = torch.randint(2, 30, (3, 10))
    x[0, 3:] = 1
    model(x)
    assert sum(int(inside.sum()) for _, _, inside in model.activations) == 3 + 10 + 10
    raw = torch.randn(2, 5, 3)
    expected = 2 * raw.pow(2).mean() + 3 * (raw[:, 1:] - raw[:, :-1]).pow(2).mean()
    assert torch.allclose(activation_penalty([(raw, raw, None)], 2, 3), expected)
    assert activation_penalty([], 2, 3) == 0.0
    assert torch.isfinite(activation_penalty([(raw[:, :1], raw[:, :1], None)], 2, 3))  # one word: nothing changes


def test_groups_cover_the_classifier() -> None:
    model = TextClassifier(encoder(Transformer), 2)
    groups = classifier_groups(model)
    assert len(groups) == 4 and sum(p.numel() for g in groups for m in g for p in m.parameters()) == sum(p.numel() for p in model.parameters())


# ------------------------------------------------------------------------------------------------- learners


@ARCHS
def test_three_steps(arch, tmp_path: Path) -> None:
    lm = writer(tmp_path, arch, drop_mult=0.3)
    lm.fit_one_cycle(8, 2e-2)
    first, last = lm.recorder.values[0], lm.recorder.final_record
    assert last[1] < first[1] and last[2] > 0.25 and math.isclose(last[3], math.exp(last[1]), rel_tol=0.1)
    lm.save_encoder("lm")
    learn = judge(tmp_path, arch, drop_mult=0.3, text_vocab=lm.dls.vocab).load_encoder("lm")
    for own, theirs in zip(learn.model.encoder.parameters(), lm.model.encoder.parameters()):
        assert torch.equal(own, theirs)
    learn.fit_gradually(1, 3e-2)
    assert learn.recorder.final_record[-1] > 0.9
    assert learn.predict("the film was a joy and the cast was great").label == "good"
    learn.fine_tune(1, 1e-2)
    assert learn.get_preds().preds.shape == (12, 2)


def test_what_is_recorded_is_the_loss_without_the_penalty(tmp_path: Path) -> None:
    losses = []
    for alpha in (0.0, 1000.0):
        learn = writer(tmp_path, alpha=alpha, beta=0.0, drop_mult=0.0)
        learn.fit(1, 1e-30)
        losses.append(learn.recorder.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    calm, wild = (writer(tmp_path, alpha=a, beta=0.0) for a in (100.0, 0.0))
    for learn in (calm, wild):
        learn.fit(3, 1e-2)
    size = [learn.model.encoder(torch.randint(2, 15, (4, 8)))[0].pow(2).mean() for learn in (calm, wild)]
    assert size[0] < size[1]
    with raises(ValueError, "RNNRegularizer", "beta", "-1"):
        RNNRegularizer(beta=-1)


def test_the_lean_loss_is_used_where_it_is_the_same(tmp_path: Path) -> None:
    weights = []
    for loss in (None, CrossEntropyLossFlat(label_smoothing=1e-12)):
        learn = writer(tmp_path, precision="fp32", loss_func=loss)
        learn.fit(1, 1e-2)
        weights.append(torch.cat([p.detach().flatten() for p in learn.model.parameters()]))
        learn.state.training = True
        assert learn.lean == (loss is None)
    assert torch.allclose(*weights, atol=1e-4)


def test_a_validation_in_the_middle_of_an_epoch_changes_nothing(tmp_path: Path) -> None:
    class Looks(Callback):
        def after_batch(self, learn) -> None:
            if learn.state.training:
                learn.validate()
                learn.predict("the film", 2)

        def after_pred(self, learn) -> None:
            if learn.state.training:
                learn.get_preds(learn.dls.test_dl(["the film was"]))

    plain, watched = writer(tmp_path), writer(tmp_path)
    plain.fit(2, 1e-2)
    watched.fit(2, 1e-2, cbs=Looks())
    for a, b in zip(plain.model.parameters(), watched.model.parameters()):
        assert torch.equal(a, b)
    assert plain.validate() == plain.validate()


def test_each_epoch_and_each_validation_begin_with_new_texts(tmp_path: Path) -> None:
    seen = []

    class Notes(Callback):
        order = 1

        def before_batch(self, learn) -> None:
            seen.append((learn.state.training, learn.model.state is None))

    learn = writer(tmp_path, cbs=Notes())
    learn.fit(2, 1e-2)
    fresh = [(training, new) for i, (training, new) in enumerate(seen) if i == 0 or seen[i - 1][0] != training]
    assert fresh == [(True, True), (False, True)] * 2 and sum(new for _, new in seen) == 4


def test_a_resumed_fit_remembers_the_texts(tmp_path: Path) -> None:
    class Stops(Callback):
        def before_batch(self, learn) -> None:
            if learn.state.training and learn.state.step == 7:
                raise KeyboardInterrupt

    whole = writer(tmp_path / "a")
    whole.fit(2, 1e-2, cbs=Checkpoint(every=1))
    first = writer(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        first.fit(2, 1e-2, cbs=[Checkpoint(every=1), Stops()])
    resumed = writer(tmp_path / "b")
    resumed.fit(2, 1e-2, cbs=Checkpoint(every=1))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters()):
        assert torch.equal(a, b)


def test_get_preds_of_a_language_model(tmp_path: Path) -> None:
    learn = writer(tmp_path)
    preds, targs, decoded, losses = learn.get_preds(with_loss=True, with_decoded=True)
    n = int((learn.dls.valid.first_batch().ys[0] >= 0).sum())
    assert preds.shape[1] == len(learn.dls.vocab) and len(targs) >= n and torch.equal(decoded, preds.argmax(1))
    loss, acc, perplexity = learn.validate()
    assert math.isclose(losses.double().mean().exp(), perplexity, rel_tol=1e-4)
    learn.model.spec.vocab_sz = 1 << 31
    with raises(ValueError, "get_preds", "test_dl", "validate"):
        learn.get_preds()


# ------------------------------------------------------------------------------------------------- writing


def test_temperature_and_top_k() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert torch.allclose(word_probs(scores, temperature=2.0), (scores / 2).softmax(0))
    assert word_probs(scores, top_k=2).ne(0).tolist() == [False, False, True, True]
    assert word_probs(scores, top_k=100).ne(0).all() and word_probs(scores, temperature=0).tolist() == [0, 0, 0, 1]
    assert word_probs(scores, banned=[3], temperature=0).tolist() == [0, 0, 1, 0]
    for name, value in (("temperature", -0.1), ("temperature", math.nan), ("top_k", 0), ("top_k", 1.5)):
        with raises(ValueError, name, value):
            word_probs(scores, **{name: value})


@ARCHS
def test_greedy_writing_takes_the_best_word_each_time(arch) -> None:
    model = LanguageModel(encoder(arch)).eval()
    text = torch.tensor([2, 9, 5])
    for word in generate(model, text, 6, temperature=0):
        model.reset()
        assert model(text[None])[0, -1].argmax() == word
        text = torch.cat([text, word[None]])
    assert len(generate(model, text, 0)) == 0
    draws = {tuple(generate(model, text, 5).tolist()) for _ in range(8)}
    assert len(draws) > 1


@ARCHS
def test_a_long_beginning_is_read_in_pieces(arch) -> None:
    model = LanguageModel(encoder(arch)).eval()
    words = torch.arange(600) % 30
    out, state = model.encoder(words[None])
    best = model.decode(out[0, -1])
    best[[1, 0]] = -torch.inf
    assert generate(model, words, 1, temperature=0, banned=[1, 0]).item() == best.argmax().item()


def test_predict_goes_on_with_the_text(tmp_path: Path) -> None:
    learn = writer(tmp_path)
    assert learn.predict("the film", 0) == "the film"
    assert learn.predict("the film", 5, seed=3) == learn.predict("the film", 5, seed=3)
    assert isinstance(learn.predict("", 4), str) and isinstance(learn.predict("zzz qqq \U0001f600", 3), str)
    assert "xxunk" not in learn.predict("the", 200, temperature=5.0)
    with raises(ValueError, "n_words", "-1"):
        learn.predict("the", -1)


# ------------------------------------------------------------------------------------------------- files


@ARCHS
def test_exports_predict_the_same_elsewhere(arch, tmp_path: Path) -> None:
    lm, learn = writer(tmp_path, arch), judge(tmp_path, arch)
    lm.fit(1, 1e-2)
    learn.fit(1, 1e-2)
    other, loaded = (load_learner(one.export(tmp_path / f"{k}.ck")) for k, one in enumerate((lm, learn)))
    assert isinstance(other, LMLearner) and isinstance(loaded, TextLearner)
    assert other.predict("the film", 12, seed=1) == lm.predict("the film", 12, seed=1)
    for text in ("the film was a joy", "", "dull " * 300):
        a, b = learn.predict(text), loaded.predict(text)
        assert a.label == b.label and torch.allclose(a.probabilities, b.probabilities, atol=1e-5)
    texts = ["the end was dull", "a joy"]
    assert torch.allclose(learn.get_preds(learn.dls.test_dl(texts)).preds, loaded.get_preds(loaded.dls.test_dl(texts)).preds, atol=1e-5)


def test_an_encoder_takes_its_words_along(tmp_path: Path, capsys) -> None:
    lm = writer(tmp_path)
    lm.fit(1, 1e-2)
    lm.save_encoder("lm")
    vocab = [*SPECIALS, "joy", "unheard", "the", "of"]
    learn = text_classifier_learner(loaders(tmp_path, text_vocab=vocab), AWD_LSTM, config=SMALL)
    learn.load_encoder("lm")
    says(capsys.readouterr().out, "2", str(len(vocab)))  # so many words are new, of so many
    old, new = lm.model.encoder.embed.emb.weight, learn.model.encoder.embed.emb.weight
    for word in vocab:
        expected = old[lm.dls.vocab.index(word)] if word in lm.dls.vocab else old.mean(0)
        assert torch.allclose(new[vocab.index(word)], expected, atol=1e-6), word
    again = writer(tmp_path / "2", pretrained=lm.file_of("lm"), config=None)  # sizes are those in the file
    assert torch.equal(again.model.bias, lm.model.bias) and torch.equal(again.model.encoder.embed.emb.weight, old)
    assert not again.model.encoder.layers[0].weight_hh.requires_grad and again.model.bias.requires_grad
    again.fit(1, 1e-2)  # with frozen layers
    assert torch.equal(again.model.encoder.layers[0].weight_hh, lm.model.encoder.layers[0].weight_hh)
    assert remapped(torch.arange(3.0), ["a", "b", "c"], ["b", "z"]).tolist() == [1.0, 1.0]


def test_encoders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    lm = writer(tmp_path)
    lm.save_encoder("lm")
    with raises(ValueError, "config", "'emb_sz': 12", "'n_hid': 16"):
        judge(tmp_path, config={**SMALL, "n_hid": 20}).load_encoder("lm")
    with raises(ValueError, "awd_lstm", "transformer"):
        judge(tmp_path, Transformer).load_encoder("lm")
    with raises(ValueError, "tokenizer"):
        text_classifier_learner(loaders(tmp_path, tok=CharTokenizer()), AWD_LSTM, config=SMALL).load_encoder("lm")
    with raises(ValueError, "none of the", "words"):
        judge(tmp_path, text_vocab=[*SPECIALS, "mot", "parole"]).load_encoder("lm")
    with raises(ValueError, "save_encoder", "learn.load"):
        judge(tmp_path).load_encoder(judge(tmp_path).save("weights"))
    with raises(FileNotFoundError, "missing"):
        judge(tmp_path).load_encoder("missing")
    tensors, header = read_tensors(lm.file_of("lm"))
    weights = "encoder.layers.0.weight_hh"
    for name, changed, other in (("no words", tensors, {**header, "input": {}}), ("more words", tensors, {**header, "input": {**header["input"], "vocab": [*header["input"]["vocab"], "x"]}}),
                                 ("no arch", tensors, {k: v for k, v in header.items() if k != "arch"}), ("half", {k: v for k, v in tensors.items() if k != weights}, header)):
        write_tensors(file := tmp_path / f"{name}.safetensors", changed, other)
        with raises(ValueError, name, "save_encoder"):
            judge(tmp_path).load_encoder(file)
    huge = {**header, "config": {**header["config"], "n_hid": 65_536, "n_layers": 100}}  # 69 GB for each layer, if it were believed
    write_tensors(file := tmp_path / "huge.safetensors", tensors, huge)
    with raises(ValueError, "huge", "save_encoder"):
        writer(tmp_path / "3", pretrained=file, config=None)
    with raises(ValueError, "vocab"):
        judge(tmp_path, text_vocab=[*SPECIALS, "mot", "film"]).load(judge(tmp_path).save("weights"))


# ------------------------------------------------------------------------------------------------- bad input and schedules


def test_learners_refuse_what_does_not_fit(tmp_path: Path) -> None:
    lm, texts = loaders(tmp_path, is_lm=True), loaders(tmp_path)
    cases = [(lambda: text_classifier_learner(lm), ("language model", "is_lm=False")), (lambda: language_model_learner(texts), ("classifier", "is_lm=True")),
             (lambda: language_model_learner(lm, "lstm"), ("arch", "'lstm'", "AWD_LSTM")), (lambda: language_model_learner(lm, drop_mult=3), ("drop_mult", "3")),
             (lambda: language_model_learner(lm, config={"n_hidden": 3}), ("n_hidden", "n_hid")),
             (lambda: language_model_learner(lm, config={"n_hid": 0}), ("n_hid", "0")),
             (lambda: text_classifier_learner(texts, bptt=0), ("bptt", "0")), (lambda: text_classifier_learner(texts, max_len=0), ("max_len", "0")),
             (lambda: judge(tmp_path).fit_gradually(0), ("n_epoch", "0")), (lambda: judge(tmp_path).fit_gradually(factor=0.5), ("factor", "0.5"))]
    for make, facts in cases:
        with raises(ValueError, *facts):
            make()
    with raises(TypeError, "metric", "metrics"):
        language_model_learner(lm, metric=accuracy)


def test_gradual_unfreezing(tmp_path: Path) -> None:
    seen = []

    class Notes(Callback):
        def before_fit(self, learn) -> None:
            groups = learn.groups
            trained = [all(p.requires_grad for p in g) for g in groups]
            peaks = [s(0.25) for s in next(c for c in learn.running if hasattr(c, "scheds")).scheds] if any(hasattr(c, "scheds") for c in learn.running) else []
            seen.append((trained, peaks))
            raise CancelFitException

    class Last(Notes):
        order = 1000

    learn = judge(tmp_path, config={**SMALL, "n_layers": 3})
    learn.fit_gradually(2, 2e-2, cbs=Last())
    assert [t for t, _ in seen] == [[False] * (5 - k) + [True] * k for k in (1, 2, 3, 5)]
    for (_, peaks), peak in zip(seen, (2e-2, 1e-2, 5e-3, 1e-3)):
        assert peaks == pytest.approx([peak / 2.6**k for k in (4, 3, 2, 1, 0)])


def test_the_resetter_leaves_other_models_alone(tmp_path: Path) -> None:
    learn = judge(tmp_path)
    assert any(isinstance(cb, ModelResetter) for cb in learn.cbs)
    learn.fit(1, 1e-3)
    assert math.isfinite(learn.recorder.final_record[0])


@pytest.mark.parametrize("bs", [4, 7, 60])
def test_validation_counts_tokens_not_rows(tmp_path: Path, bs: int) -> None:
    """Loss, accuracy and perplexity of a set that fills its last rows and its last batch only in part: the closed form over all tokens."""
    learn = writer(tmp_path)
    learn.metrics = [accuracy, Perplexity()]
    dl = learn.dls.test_dl(list(reviews(9).text), bs=bs)
    preds, targs = learn.get_preds(dl)
    want = F.nll_loss(preds.log(), targs).item()
    right = (preds.argmax(1) == targs).float().mean().item()
    assert (torch.cat([b.y.flatten() for b in dl]) == -100).any()
    assert learn.validate(dl) == pytest.approx([want, right, math.exp(want)], rel=1e-4)


def test_few_texts_are_rows_of_their_own(tmp_path: Path) -> None:
    dls = loaders(tmp_path, is_lm=True, bs=32)
    one = dls.test_dl(["the film was a joy and the cast was great"])
    assert [b.x.shape[0] for b in one] == [1] * len(one) and one.first_batch().x.shape == (1, 8)
    assert dls.test_dl(["a", "b", "c"], bs=2).first_batch().x.shape[0] == 2
    assert dls.test_dl(list(reviews().text)).first_batch().x.shape[0] == 60 < dls.valid.bs


def test_targets_that_do_not_count() -> None:
    preds, targs = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 1, -100])
    assert accuracy(preds, targs) == pytest.approx(2 / 3) and error_rate(preds, targs) == pytest.approx(1 / 3)
    assert top_k_accuracy(preds, targs, k=3) == pytest.approx(1)
    whole = AverageMetric(accuracy)
    for part in (slice(0, 1), slice(1, 4), slice(3, 4)):  # the last one has none that counts
        whole.update(preds[part], targs[part])
    assert whole.compute() == pytest.approx(2 / 3)
