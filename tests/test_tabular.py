"""Tables: encoded once, the same network from every kind of frame, scikit-learn's promises, files, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from helpers import raises, says
from hypothesis import given, settings
from hypothesis import strategies as st

from coursekit.core import seeded
from coursekit.data.block import CategoryBlock, MultiCategoryBlock, RegressionBlock
from coursekit.data.items import RandomSplitter
from coursekit.deploy.hub import load_learner
from coursekit.tabular.data import TabularDataLoaders, TabularPandas
from coursekit.tabular.estimators import TabularClassifier, TabularRegressor
from coursekit.tabular.frames import Columns, add_datepart, as_columns, cont_cat_split, read_csv
from coursekit.tabular.insight import category_embeddings, embedded, partial_dependence, permutation_importance
from coursekit.tabular.learner import predict_frame, tabular_learner
from coursekit.tabular.model import Embeddings, TabularModel
from coursekit.tabular.plan import plan_table
from coursekit.tabular.procs import Categorify, FillMissing, Normalize
from coursekit.training.metrics import accuracy, for_target, mae, rmse
from coursekit.training.notation import range_of
from coursekit.training.optimizers import DirectAdamW

PROCS = [Categorify, FillMissing, Normalize]


def people(n: int = 400, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({"job": rng.choice(["clerk", "nurse", "cook"], n), "age": rng.integers(18, 70, n).astype(float), "hours": rng.normal(38, 5, n)})
    df["wage"] = df.age / 10 + 2 * (df.job == "nurse") + rng.normal(0, 0.3, n)
    df["rich"] = np.where(df.wage > 5, "yes", "no")
    df.loc[::9, "age"] = np.nan
    return df


def trained(df: pd.DataFrame, y: object = "rich", **options: object):
    to = TabularPandas(df, PROCS, ["job"], ["age", "hours"], y_names=y, splits=RandomSplitter(seed=1)(range_of(df)), **options)
    learn = tabular_learner(to.dataloaders(32, device="cpu", seed=0), [30], seed=0)
    with learn.no_bar():
        learn.fit_one_cycle(4, 1e-2)
    return learn


# ------------------------------------------------------------------------------------------------- encoding


@settings(max_examples=15, deadline=None)
@given(st.lists(st.one_of(st.none(), st.sampled_from(["a", "b", "c", "d"])), min_size=4, max_size=30),
       st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6, width=32)), min_size=4, max_size=30), st.integers(0, 99))
def test_what_is_encoded_comes_back(cats: list, nums: list, seed: int) -> None:
    n = min(len(cats), len(nums))
    df = pd.DataFrame({"cat": pd.Series(cats[:n], dtype=object), "num": pd.Series(nums[:n], dtype=float), "y": np.arange(n) / 2})
    cut = max(2, n // 2)
    order = np.random.default_rng(seed).permutation(n)
    train = df.iloc[order[:cut]]
    if train.num.isna().all() or train.cat.isna().all():
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        to = TabularPandas(df, PROCS, ["cat"], ["num"], y_names="y", splits=(order[:cut], order[cut:]))
    back, known = to.rows.items[:], set(train.cat.dropna())
    for i, (_, row) in zip(order, back.iterrows()):
        said = df.cat[i] if df.cat[i] in known else None
        assert pd.isna(row['cat']) if said is None else row['cat'] == said
        if not np.isnan(df.num[i]):
            assert row["num"] == pytest.approx(df.num[i], rel=1e-5, abs=1e-4 * (1 + abs(df.num).max()))
    filled = train.num.fillna(train.num.median())
    std = filled.std(ddof=0)
    x = to.train.xs["num"]
    assert x.mean() == pytest.approx(0, abs=1e-3) and (std < 1e-6 * (1 + abs(filled).max()) or x.std(ddof=0) == pytest.approx(1, abs=1e-3))


def test_validation_rows_teach_nothing() -> None:
    a, b = people(), people()
    b.loc[300:, ["job", "age", "hours"]] = ["pilot", 1e6, -1e6]
    splits = (range(300), range(300, 400))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, other = (TabularPandas(df, PROCS, ["job"], ["age", "hours"], y_names="rich", splits=splits) for df in (a, b))
    assert one.classes == other.classes and one.train.xs.equals(other.train.xs)
    assert (other.valid.xs.job == 0).all()  # never seen


def test_ordered_categories_keep_their_order_and_gaps_get_a_column() -> None:
    df = people()
    df["size"] = pd.Categorical(np.resize(["M", "S", "L"], 400), categories=["S", "M", "L"], ordered=True)
    to = TabularPandas(df, PROCS, ["size", "job"], ["age"], y_names="wage")
    assert to.classes == {"size": ["#na#", "S", "M", "L"], "job": ["#na#", "clerk", "cook", "nurse"], "age_na": ["#na#", False, True]}
    assert (to.xs.age_na == 2).tolist() == df.age.isna().tolist()
    assert to.y.tolist() == pytest.approx(df.wage.tolist())


FRAMES = {"pandas": lambda df: df, "rows": lambda df: df.to_dict("records"), "columns": lambda df: {c: df[c].tolist() for c in df},
          "nullable": lambda df: df.convert_dtypes(), "object": lambda df: df.astype(object), "category": lambda df: df.astype({"job": "category", "rich": "category"}),
          "index": lambda df: df.set_index(pd.Index([f"row {i}" for i in df.index]))}


@pytest.mark.parametrize("kind", FRAMES)
def test_every_kind_of_frame_is_encoded_alike(kind: str) -> None:
    df = people(60)
    want, got = (TabularPandas(f, PROCS, ["job"], ["age", "hours"], y_names="rich", splits=(range(40), range(40, 60))) for f in (df, FRAMES[kind](df)))
    assert all(torch.allclose(a, b) for a, b in zip(want.rows.parts, got.rows.parts)) and want.classes == got.classes


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_frames_of_other_libraries(library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    df = people(60)
    want = TabularPandas(df, PROCS, ["job"], ["age", "hours"], y_names="rich")
    if library == "polars":
        import polars

        tables = [polars.DataFrame({c: df[c].tolist() for c in df}), polars.DataFrame({c: df[c].tolist() for c in df}).lazy()]
    else:
        import pyarrow

        df.to_parquet(tmp_path / "people.parquet")
        tables = [pyarrow.Table.from_pandas(df), tmp_path / "people.parquet", df.convert_dtypes(dtype_backend="pyarrow")]
    for table in tables:
        got = TabularPandas(table, PROCS, ["job"], ["age", "hours"], y_names="rich")
        assert all(torch.allclose(a, b) for a, b in zip(want.rows.parts, got.rows.parts))


def test_a_large_table_is_kept_in_small_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    import coursekit.tabular.block as block
    import coursekit.tabular.targets as targets

    plain = trained(people())
    small = lambda cards, n: torch.uint8
    monkeypatch.setattr(block, "code_dtype", small)
    monkeypatch.setattr(targets, "code_dtype", small)
    packed = trained(people())
    assert packed.dls.train_ds.parts[0].dtype == torch.uint8
    assert plain.recorder.losses == packed.recorder.losses


# ------------------------------------------------------------------------------------------------- the network


def test_embeddings_are_those_of_pytorch() -> None:
    sizes = [(4, 2), (30, 9), (3, 2)]
    emb, layers = Embeddings(sizes), [torch.nn.Embedding(*s) for s in sizes]
    for j, layer in enumerate(layers):
        layer.weight.data.copy_(emb.table(j))
    codes = torch.stack([torch.randint(n, (50,)) for n, _ in sizes], 1)
    ours, theirs = emb(codes), torch.cat([layer(codes[:, j]) for j, layer in enumerate(layers)], 1)
    assert torch.equal(ours, theirs)
    (ours * torch.arange(13)).square().sum().backward(), (theirs * torch.arange(13)).square().sum().backward()
    assert torch.allclose(emb.weight.grad, torch.cat([layer.weight.grad.flatten() for layer in layers]), rtol=1e-5)


def test_fused_layers_train_as_the_modules_do() -> None:
    def run(fused: bool) -> list[torch.Tensor]:
        with seeded(1):
            net = TabularModel([(9, 6), (5, 4)], 3, 2, [20, 10]).build()
        rng = torch.Generator().manual_seed(2)
        opt = DirectAdamW(net.parameters(), lr=1e-2, fused=True)
        if not fused:
            net.layers[0].register_forward_hook(lambda *about: None)
        for _ in range(20):
            cats, conts, y = torch.randint(5, (32, 2), generator=rng), torch.randn(32, 3, generator=rng), torch.randint(2, (32,), generator=rng)
            out = net(cats, conts)
            assert ("Fused" in type(out.grad_fn).__name__) == fused
            F.cross_entropy(out, y).backward()
            opt.step()
            opt.zero_grad()
        return [*net.state_dict().values()]

    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(run(True), run(False)))


def test_a_hook_dropout_or_a_frozen_part_means_the_modules() -> None:
    x = torch.randint(3, (8, 1)), torch.randn(8, 2)
    for change in (lambda net: net.layers[0].register_forward_hook(lambda *about: None), lambda net: net.embeds.weight.requires_grad_(False),
                   lambda net: net.layers[2].eval()):
        net = TabularModel([(4, 2)], 2, 2, [6]).build()
        assert net.fused.ready(x[1])
        change(net)
        assert not net.fused.ready(x[1])
    assert not TabularModel([(4, 2)], 2, 2, [6], [0.5]).build().fused.ready(x[1])
    for change in (lambda net: setattr(net, "layers", torch.nn.Sequential(torch.nn.Linear(4, 2))), lambda net: net.layers.__setitem__(-1, torch.nn.Linear(6, 2))):
        net = TabularModel([(4, 2)], 2, 2, [6]).build()
        net(*x)
        change(net)
        net(*x).sum().backward()
        assert net.layers[-1].weight.grad is not None
    assert not TabularModel([(4, 2)], 2, 2, [6], join="two_models").build().fused.ready(x[1])


def test_the_three_joins_learn() -> None:
    df = people(800)
    dls = TabularDataLoaders.from_df(df, y_names="rich", cat_names=["job"], cont_names=["age", "hours"], seed=1, device="cpu", bs=32)
    for join in ("one_input", "two_inputs", "two_models"):
        learn = tabular_learner(dls, [30, 10], join=join, metrics=accuracy, seed=1)
        with learn.no_bar():
            learn.fit_one_cycle(5, 1e-2)
        assert learn.recorder.final_record[-1] > 0.8, join


def test_targets_of_every_kind() -> None:
    df = people()
    df["old"], df["tall"] = df.hours > 38, np.arange(400) % 2
    learn = trained(df, "wage")
    assert isinstance(learn.dls.targets[0], RegressionBlock) and learn.predict(df.iloc[1]).label == pytest.approx(df.wage[1], abs=6)
    learn = trained(df, ["wage", "tall"])
    assert learn.dls.n_out == 2 and len(learn.predict(df.iloc[1]).probabilities) == 2
    assert list(predict_frame(learn, df)) == ["wage", "tall"]
    learn = trained(df, ["rich", "wage"])
    learn.metrics = [accuracy, for_target(1, mae)]
    label, (index, number), _ = learn.predict(df.iloc[1])
    assert label[0] in ("yes", "no") and len(learn.validate()) == 3
    assert list(predict_frame(learn, df)) == ["rich", "rich=no", "rich=yes", "wage"]
    assert predict_frame(learn, df[100:103]).index.tolist() == [100, 101, 102]
    learn = trained(df, ["old", "tall"], y_block=MultiCategoryBlock(encoded=True, vocab=["old", "tall"]))
    assert set(learn.predict(df.iloc[0]).label) <= {"old", "tall"} and list(predict_frame(learn, df)) == ["old", "tall"]
    assert trained(df, "tall", y_block=CategoryBlock()).dls.vocab == [0, 1]
    y_range = tabular_learner(trained(df, "wage").dls, [20], y_range=(0, 3), seed=0)
    assert 0 <= y_range.predict(df.iloc[0]).label <= 3


def test_show_results_and_importance() -> None:
    df = people(1200)
    learn = trained(df)
    learn.show_results(max_n=3)
    learn.dls.show_batch(max_n=2)
    rows = permutation_importance(learn).values
    assert [r[0] for r in rows][-1] == "hours" and rows[0][1] > 0.1
    ages = partial_dependence(learn, "age")
    assert ages[0][1] < 0.4 < ages[-1][1] and dict(partial_dependence(learn, "job", target="no"))["nurse"] < 0.5
    assert category_embeddings(learn, "job").shape == (4, 3)
    to = TabularPandas(df, PROCS, ["job"], ["age", "hours"], y_names="rich", splits=RandomSplitter(seed=1)(range_of(df)))
    assert embedded(learn, to.train).shape == (960, 8)
    wages = trained(df, "wage")
    assert permutation_importance(wages).values[-1][0] == "hours" and partial_dependence(wages, "age")[-1][1] > 5


def test_importance_of_ordered_classes() -> None:
    df, levels = people(800), ["low", "mid", "high"]  # not in alphabetical order, as scikit-learn wants them
    df["level"] = pd.Categorical(np.select([df.wage < 4, df.wage < 6], levels[:2], "high"), levels, ordered=True)
    learn = trained(df, "level")
    assert permutation_importance(learn).values[0][1] > 0.1
    assert permutation_importance(learn, learn.dls.test_dl(df[df.level != "mid"], with_labels=True)).values[0][1] > 0.1  # a class that doesn't occur
    low = [p for _, p in partial_dependence(learn, "age", target="low")]
    assert low[0] > 0.5 > low[-1]


# ------------------------------------------------------------------------------------------------- files


def test_a_file_answers_in_another_process_and_says_what_is_new(tmp_path: Path) -> None:
    df = people()
    learn = trained(df)
    with learn.no_bar():
        file = learn.export(tmp_path / "rich.ck")
    code = f"""
import json, warnings
from coursekit.deploy.hub import load_learner
learn = load_learner({str(file)!r}, device="cpu")
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    p = learn.predict({{"job": "astronaut", "age": 40, "hours": None}})
print(json.dumps([p.label, p.probabilities.tolist(), [str(w.message) for w in said]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    label, probabilities, said = json.loads(done.stdout)
    with pytest.warns(UserWarning, match="astronaut") as here:
        p = learn.predict({"job": "astronaut", "age": 40, "hours": None})
    assert label == p.label and probabilities == pytest.approx(p.probabilities.tolist(), abs=1e-6)
    assert len(said) == len(here) == 1
    says(said[0], "job", "astronaut", "hours", "1 gap")
    loaded = load_learner(file, device="cpu")
    assert np.allclose(predict_frame(loaded, df)["rich=yes"], predict_frame(learn, df)["rich=yes"], atol=1e-6)
    dl = loaded.dls.test_dl(df, with_labels=True)
    assert loaded.get_preds(dl).targs.tolist() == (df.rich == "yes").astype(int).tolist()


def test_weights_of_another_table_are_refused(tmp_path: Path) -> None:
    learn = trained(people())
    learn.path = tmp_path
    learn.save("a")
    other = people().replace("cook", "pilot")
    with raises(ValueError, "vocabs"):
        trained(other).load(tmp_path / "models" / "a.safetensors")


# ------------------------------------------------------------------------------------------------- bad input


def test_bad_columns_are_named() -> None:
    df = people()
    make = lambda df, cat=("job",), cont=("age",), y="rich", **options: TabularPandas(df, PROCS, list(cat), list(cont), y_names=y, **options)
    with raises(ValueError, "jobs", "job"):
        make(df, cat=["jobs"])
    with raises(ValueError, "rihc", "rich"):
        make(df, y="rihc")
    with raises(ValueError, "rich", "2 gaps", "row 5", "dropna"):
        make(df.assign(rich=df.rich.mask(df.index.isin([5, 9]))))
    with raises(ValueError, "age", "2 values", "n/a", "row 3", "to_numeric"):
        make(df.assign(age=df.age.astype(object).where(~df.index.isin([3, 8]), "n/a")))
    with raises(ValueError, "hours", "1 infinite value", "row 7"):
        make(df.assign(hours=df.hours.where(df.index != 7, np.inf)), cont=["hours"])
    with raises(ValueError, "no rows"):
        make(df[:0])
    with raises(ValueError, "age", "more than once"):
        make(pd.concat([df, df[["age"]]], axis=1))
    with raises(ValueError, "empty", "age"):
        make(df.assign(age=np.nan))
    with raises(ValueError, "born", "add_datepart"):
        make(df.assign(born=pd.Timestamp("2020-01-01")), cont=["born"])
    with raises(ValueError, "only one class"):
        make(df.assign(rich="yes"))
    with pytest.warns(UserWarning, match="name") as said:
        make(df.assign(name=[f"n{i}" for i in df.index]), cat=["job", "name"])
    says(said[0].message, "name", "400 different values", "leave it out")
    with raises(ValueError, "no", "vip", "row 399"):
        make(df.assign(rich=df.rich.where(df.index != 399, "vip")), splits=(range(300), range(300, 400)))
    with raises(ValueError, "age", "put FillMissing into procs"):
        TabularPandas(df, [Categorify], ["job"], ["age"], y_names="rich")


def test_bad_files_and_dates(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age;rich\n39;yes\n50;no\n")
    assert list(read_csv(tmp_path / "a.csv")) == ["age", "rich"]
    with raises(ValueError, "a.csv", "delimiter=';'"):
        read_csv(tmp_path / "a.csv", delimiter=",")
    with raises(FileNotFoundError, "b.csv"):
        TabularDataLoaders.from_csv(tmp_path / "b.csv", y_names="rich")
    (tmp_path / "empty.csv").write_text("")
    with raises(ValueError, "empty.csv"):
        read_csv(tmp_path / "empty.csv")
    (tmp_path / "umlaut.csv").write_bytes("straße,n\nLöwe,1\n".encode("cp1252"))
    assert read_csv(tmp_path / "umlaut.csv").iloc[0, 0] == "Löwe"
    with raises(ValueError, "sold", "2024-02-31", "row 1"):
        add_datepart(pd.DataFrame({"sold": ["2024-02-29", "2024-02-31"]}), "sold")
    with raises(ValueError, "sodl", "sold"):
        add_datepart(pd.DataFrame({"sold": ["2024-02-29"]}), "sodl")
    (tmp_path / "x.parquet").write_bytes(b"no")
    pytest.importorskip("pyarrow")
    with raises(ValueError, "x.parquet", "not a Parquet file"):
        as_columns(tmp_path / "x.parquet")


def test_a_frame_instead_of_a_row() -> None:
    learn = trained(people())
    with raises(ValueError, "model needs column 'hours'"):
        learn.predict({"job": "clerk", "age": 3})
    with raises(ValueError, "test_dl"):
        learn.dls.test_dl("people.csv")
    with raises(ValueError, "old", "age"):
        learn.predict({"job": "clerk", "age": "old", "hours": 3})


def test_dates_become_columns() -> None:
    days = pd.date_range("2023-12-25", periods=20, freq="D")
    made = add_datepart(pd.DataFrame({"saledate": days.astype(str), "n": 1}, index=range(5, 25)), "saledate")
    assert made.saleElapsed.tolist() == [int(d.timestamp()) for d in days]
    assert made.saleIs_year_end.tolist() == [d.is_year_end for d in days] and made.saleWeek.tolist() == [d.isocalendar()[1] for d in days]
    assert made.index.tolist() == list(range(5, 25)) and "saledate" not in made
    with_gap = add_datepart(pd.DataFrame({"date": [days[0], pd.NaT]}), "date", drop=False)
    assert with_gap.Year.isna().tolist() == [False, True] and with_gap.Elapsed.isna().tolist() == [False, True]
    assert cont_cat_split(with_gap)[0][:1] == ["Year"]
    with raises(ValueError, "'date'", "numbers", "%Y%m%d"):
        add_datepart(pd.DataFrame({"date": [20190131, 20190201]}), "date")


def test_columns_are_read_one_at_a_time() -> None:
    df, asked = people(), []

    def read(name: object) -> pd.Series:
        asked.append(name)
        return df[name]

    TabularPandas(Columns(list(df), len(df), read), PROCS, ["job"], ["age"], y_names="rich")
    assert "hours" not in asked and "wage" not in asked


# ------------------------------------------------------------------------------------------------- scikit-learn


@pytest.mark.parametrize("make", [TabularClassifier, TabularRegressor])
def test_scikit_learns_checks(make: type) -> None:
    """All of them, with a small net; the one of array_api skips itself where SCIPY_ARRAY_API is not set."""
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = checks.check_estimator(make([10]), on_fail=None)
    bad = [(r["check_name"], r["exception"]) for r in found if r["status"] not in ("passed", "skipped")]
    assert not bad and sum(r["status"] == "passed" for r in found) > 40, bad


def test_estimators_take_frames_and_pipelines() -> None:
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    df = people(600)
    X, y = df[["job", "age", "hours"]], df.rich
    model = TabularClassifier([20], epochs=8, random_state=0)
    assert cross_val_score(model, X, y, cv=2).mean() > 0.8
    pipe = make_pipeline(FunctionTransformer(lambda X: X.assign(double=2 * X.hours)), model).fit(X, y)
    assert pipe.score(X, y) > 0.85 and pipe.predict_proba(X).shape == (600, 2)
    assert GridSearchCV(model, {"lr": [1e-5, 1e-2]}, cv=2).fit(X, y).best_params_ == {"lr": 1e-2}
    wages = TabularRegressor([20], epochs=10, random_state=0).fit(X, df.wage * 1000 + 5000)
    assert wages.score(X, df.wage * 1000 + 5000) > 0.8
    one = wages.learner_.predict(X.iloc[0]).label
    assert one == pytest.approx(wages.predict(X[:1])[0], rel=1e-4)


# ------------------------------------------------------------------------------------------------- stand-in, plan, real data


def test_the_stand_in_has_the_columns_of_the_real_table(mirror: Path, tmp_path: Path) -> None:
    import tarfile

    from coursekit.samples.census import make_paper_census

    with tarfile.open(mirror / "adult_sample.tgz") as tar:
        real = pd.read_csv(tar.extractfile("adult_sample/adult.csv"))
    drawn = pd.read_csv(make_paper_census(tmp_path / "a") / "adult.csv")
    assert list(real) == list(drawn)
    for name in real.columns[real.dtypes.eq(object) | (real.dtypes.astype(str) == "str")]:
        assert set(drawn[name]) <= set(real[name]), name
    assert [str(t) for t in real.dtypes] == [str(t) for t in drawn.dtypes]


def test_adult_reaches_what_is_published(mirror: Path, tmp_path: Path) -> None:
    from coursekit.data.archive import extract_archive

    folder = extract_archive(mirror / "adult_sample.tgz", tmp_path / "adult", strip_top=True)
    dls = TabularDataLoaders.from_csv(
        folder / "adult.csv", y_names="salary", procs=PROCS, seed=0, bs=256, device="cpu", cont_names=["age", "fnlwgt", "education-num"],
        cat_names=["workclass", "education", "marital-status", "occupation", "relationship", "race"])
    learn = tabular_learner(dls, metrics=accuracy, seed=0)
    with learn.no_bar():
        learn.fit_one_cycle(2, 5e-3)
    assert learn.recorder.final_record[-1] > 0.825


def test_plan_says_what_it_leaves_out() -> None:
    df = people(300)
    df["id"], df["name"], df["same"] = range(300), [f"n{i}" for i in range(300)], 1
    df.loc[4, "rich"] = None
    plan = plan_table(df, "rich")
    says(plan, "rich", "2 classes", "id", "name", "same", "row 4", "age")
    assert plan.cat_names == ["job"] and set(plan.left_out) == {"id", "name", "same"} and len(plan.table) == 299
    assert isinstance(plan_table(df, "wage").block, RegressionBlock)
    with raises(ValueError, "same", "nothing to predict"):
        plan_table(df, "same")
    with raises(ValueError, "valid_pct"):
        plan_table(df, "rich", valid_pct=2)


def test_command_line(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from coursekit.cli.main import main

    df = people(300)
    df.to_csv(tmp_path / "people.csv", index=False)
    run = lambda *args: CliRunner().invoke(main, [str(a) for a in args])
    done = run("train", tmp_path / "people.csv", "--target", "rich", "--out", tmp_path / "m.ck", "--epochs", 2)
    assert done.exit_code == 0, done.output
    says(done.output, "target", "2 classes", "to beat", "accuracy", "wrote")
    assert run("train", tmp_path / "people.csv", "--target", "rihc", "--out", tmp_path / "n.ck").exit_code == 1
    assert run("train", tmp_path / "people.csv", "--target", "rich", "--size", 64).exit_code == 2
    done = run("train", tmp_path / "people.csv", "--target", "wage", "--dry-run")
    assert done.exit_code == 0 and "a number from" in done.output
    done = run("predict", tmp_path / "m.ck", tmp_path / "people.csv", "--json")
    rows = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    assert done.exit_code == 0 and len(rows) == 300 and rows[7]["row"] == 7 and {t["class"] for t in rows[0]["top"]} == {"yes", "no"}
    done = run("predict", tmp_path / "m.ck", tmp_path / "none.csv", tmp_path / "people.csv")
    assert done.exit_code == 1 and done.output.count("row ") >= 300


def test_rmse_of_a_fit_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import root_mean_squared_error

    learn = trained(people(), "wage")
    learn.metrics = rmse
    preds, targs = learn.get_preds()
    assert learn.validate()[1] == pytest.approx(root_mean_squared_error(targs, preds[:, 0]), rel=1e-5)
