"""Ratings: what is checked in a table, what a recommender predicts, and that files take the names along."""

from __future__ import annotations

import functools
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import raises
from hypothesis import given, settings
from hypothesis import strategies as st

from coursekit.collab import (AverageForUnknown, CollabDataLoaders, EmbeddingDotBias, RowAdamW, clean_ratings, collab_learner, recommend,
                              similar_items)
from coursekit.deploy.hub import load_learner
from coursekit.samples.ratings import make_paper_films, noise_floor
from coursekit.training.learner import Learner
from coursekit.training.optimizers import SGD, AdamW


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_paper_films(tmp_path_factory.mktemp("films") / "films", users=150, films=100, ratings=8000)


@pytest.fixture(scope="module")
def ratings(films: Path) -> pd.DataFrame:
    return pd.read_csv(films / "ratings.csv").merge(pd.read_csv(films / "movies.csv")[["movieId", "title"]])


def loaders(ratings: pd.DataFrame, **options) -> CollabDataLoaders:
    return CollabDataLoaders.from_df(ratings, **{"item_name": "title", "rating_name": "rating", "seed": 42, "device": "cpu", **options})


@pytest.fixture(scope="module")
def learn(ratings: pd.DataFrame) -> Learner:
    learn = collab_learner(loaders(ratings), n_factors=8, y_range=(0, 5.5), seed=1)
    with learn.no_bar():
        learn.fit_one_cycle(8, 2e-2, wd=0.3)
    return learn


def test_it_comes_close_to_the_noise_floor(learn: Learner, films: Path, ratings: pd.DataFrame) -> None:
    floor, error = noise_floor(films)[1], learn.validate()[0]
    mean_only = ratings.rating.var()
    assert floor < error < mean_only - 0.5 * (mean_only - floor), (floor, error, mean_only)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 6), st.integers(1, 10)), min_size=12, max_size=60, unique_by=lambda r: r[:2]),
       st.integers(0, 99))
def test_every_rating_is_served_once_and_means_what_it_meant(rows: list, seed: int) -> None:
    df = pd.DataFrame(rows, columns=["who", "what", "stars"])
    dls = CollabDataLoaders.from_df(df, seed=seed, bs=1, device="cpu")
    block, served = dls.train_ds.block, []
    for dl in (dls.train, dls.valid):
        for batch in dl:
            served += [(*block.decode(x), float(y)) for x, y in zip(batch.xs[0], batch.ys[0])]
    known = {(w, t) for w, t, _ in served if "#na#" not in (w, t)}
    assert len(served) == len(rows) and {(w, t, float(s)) for w, t, s in rows if (w, t) in known} == {r for r in served if r[:2] in known}
    assert {w for w, *_ in served} <= {*"abcdef", "#na#"}


def test_bad_tables_are_refused_with_the_fix(ratings: pd.DataFrame, tmp_path: Path) -> None:
    with raises(ValueError, "item_name", "'titel'", "'title'"):
        loaders(ratings, item_name="titel")
    with raises(ValueError, "rating", "row 2", "'five'"):
        loaders(ratings.assign(rating=["4", "3.5", "five"] + ["1"] * (len(ratings) - 3)))
    with raises(ValueError, "rating", "inf"):
        loaders(ratings.assign(rating=np.inf))
    with raises(ValueError, "title", "None"):
        loaders(ratings.assign(title=None))
    with raises(ValueError, "no rows"):
        loaders(ratings[:0])
    with raises(ValueError, "2 columns"):
        CollabDataLoaders.from_df(ratings.iloc[:, :2])
    ratings[:9].to_csv(tmp_path / "semicolons.csv", sep=";")
    with raises(ValueError, "1 column", "delimiter"):
        CollabDataLoaders.from_csv(tmp_path / "semicolons.csv", item_name="title")
    with raises(ValueError, "three different columns"):
        loaders(ratings, item_name="rating")
    with raises(ValueError, "y_range=(1, 5)", "0.5 to 5"):
        collab_learner(loaders(ratings), y_range=(1, 5))
    with pytest.warns(UserWarning, match="3 ratings"):
        again = clean_ratings(pd.concat([ratings, ratings[:3].assign(rating=0.5)]), item_name="title", rating_name="rating")
    assert len(again) == len(ratings) and (again.rating[-3:] == 0.5).all()


def test_text_ids_numbers_and_arrow_columns_give_the_same(ratings: pd.DataFrame) -> None:
    plain = loaders(ratings)
    other = loaders(ratings.astype({"userId": "int32", "title": "category", "rating": "float32"}))
    assert plain.classes == other.classes and torch.equal(plain.train_ds.pairs, other.train_ds.pairs)
    assert all(isinstance(u, int) for u in plain.classes["userId"][1:])


def test_columns_in_any_order_and_names_of_any_kind(ratings: pd.DataFrame) -> None:
    mixed = ratings[["title", "movieId", "userId", "rating"]].assign(userId=[f"u{u}" if u % 2 else u for u in ratings.userId])
    dls = loaders(mixed, user_name="userId")
    assert dls.test_dl(mixed[:9], with_labels=True).dataset.ratings.tolist() == mixed.rating[:9].tolist()
    assert "rating" in str(dls.show_batch()) and [type(u) for u in dls.classes["userId"][1:3]] == [int, int]
    plain = ratings[["userId", "title", "rating"]].set_axis([0, 1, 2], axis=1)
    assert torch.equal(CollabDataLoaders.from_df(plain, seed=42, device="cpu").test_dl(plain[:9]).dataset.pairs, loaders(ratings).test_dl(ratings[:9]).dataset.pairs)
    with raises(ValueError, "'title'", "'titel'"):
        dls.test_dl(mixed.rename(columns={"title": "titel"}))


def test_other_optimizers_train_the_factors_too(ratings: pd.DataFrame) -> None:
    for opt in (AdamW, SGD, functools.partial(RowAdamW, eps=1e-6)):
        learn = collab_learner(loaders(ratings), n_factors=4, y_range=(0, 5.5), seed=1, opt_func=opt)
        before = learn.validate()[0]
        with learn.no_bar():
            learn.fit(1, 1e-2)
        assert learn.validate()[0] < before


def test_names_biases_and_factors(learn: Learner) -> None:
    titles = learn.dls.classes["title"][3:6]
    assert learn.model.bias(titles, is_item=True).shape == (3,) and learn.model.weight(titles, is_item=True).shape == (3, 8)
    o2i = learn.dls.classes["title"].o2i
    assert torch.equal(learn.model.bias(titles), learn.model.i_bias.weight.squeeze()[[o2i[t] for t in titles]].detach())
    assert learn.model.weight([1, 2], is_item=False).shape == (2, 8)
    with raises(ValueError, "'Nothing'"):
        learn.model.bias(["Nothing"])


def test_an_unknown_user_gets_the_average_and_a_warning(learn: Learner) -> None:
    title = learn.dls.classes["title"][1]
    with pytest.warns(UserWarning, match="'nobody'"):
        found = learn.predict(("nobody", title))
    net, k = learn.model, 8
    rows = net.table.weight.detach()
    mean, item = rows[1 : net.n_users].mean(0), rows[net.n_users + 1]
    assert found.label == pytest.approx(float(net.squash(mean[:k] @ item[:k] + mean[k] + item[k])), abs=1e-4)


def test_a_file_takes_the_names_along(learn: Learner, tmp_path: Path) -> None:
    file = learn.export(tmp_path / "films.ck")
    user, title = learn.dls.valid_ds.items[0]
    one = learn.predict((user, title)).label
    assert learn.predict({"userId": user, "title": title}).label == learn.predict(pd.Series({"title": title, "userId": user})).label == one
    assert load_learner(file, device="cpu").predict((user, title)).label == pytest.approx(one, abs=1e-5)
    code = (f"from coursekit.deploy.hub import load_learner\nfrom coursekit.collab import recommend\nlearn = load_learner({str(file)!r}, device='cpu')\n"
            f"print(learn.predict(({user!r}, {title!r})).label)\nprint(recommend(learn, {user!r}, 3).to_df().title.tolist())")  # fmt: skip
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert float(said[0]) == pytest.approx(one, abs=1e-5)
    assert len(recommend(learn, user, 1000).rows) + sum(1 for u, _ in [*learn.dls.train_ds.items, *learn.dls.valid_ds.items] if u == user) \
        >= len(learn.dls.classes["title"]) - 1


def test_a_network_instead_of_the_dot_product(ratings: pd.DataFrame, tmp_path: Path) -> None:
    learn = collab_learner(loaders(ratings), use_nn=True, layers=[20], y_range=(0, 5.5), seed=1)
    with learn.no_bar():
        learn.fit_one_cycle(4, 1e-2)
    assert learn.validate()[0] < 0.9 * ratings.rating.var()
    pair = learn.dls.valid_ds.items[0]
    assert load_learner(learn.export(tmp_path / "nn.ck"), device="cpu").predict(pair).label == pytest.approx(learn.predict(pair).label, abs=1e-5)
    with raises(ValueError, "use_nn"):
        similar_items(learn, pair[1])


def test_row_adamw_is_adamw_where_every_row_is_used() -> None:
    torch.manual_seed(0)
    lazy, dense = torch.nn.Embedding(6, 3, sparse=True), torch.nn.Embedding(6, 3)
    dense.load_state_dict(lazy.state_dict())
    settings = {"lr": 1e-3, "weight_decay": 0.1}
    opts = [RowAdamW(lazy.parameters(), **settings), torch.optim.AdamW(dense.parameters(), betas=(0.9, 0.99), eps=1e-5, **settings)]
    for _ in range(50):
        for table, opt in zip((lazy, dense), opts):
            opt.zero_grad()
            (table(torch.arange(6)) - 1).pow(2).sum().backward()
            opt.step()
    assert torch.allclose(lazy.weight, dense.weight, atol=1e-5)


def test_a_row_gets_the_decay_that_it_missed() -> None:
    table = torch.nn.Embedding(2, 1, sparse=True)
    torch.nn.init.ones_(table.weight)
    opt = RowAdamW(table.parameters(), lr=0.1, weight_decay=0.5, eps=1e30)  # so large that the gradient does nothing
    for row in (0, 0, 0, 1):
        opt.zero_grad()
        table(torch.tensor([row])).sum().backward()
        opt.step()
    assert table.weight.flatten().tolist() == pytest.approx([np.exp(-0.15), np.exp(-0.2)], abs=1e-6)


def test_a_fit_goes_on_after_save_and_load(ratings: pd.DataFrame, tmp_path: Path) -> None:
    def made() -> Learner:
        return collab_learner(loaders(ratings), n_factors=4, y_range=(0, 5.5), seed=3, path=tmp_path)

    a = made()
    with a.no_bar():
        a.fit(1, 1e-2)
        a.save("half")
        b = made().load("half")
        b.dls.train.epoch = a.dls.train.epoch
        for learn in (a, b):
            with learn.no_bar():
                learn.fit(1, 1e-2)
    assert torch.equal(a.model.table.weight, b.model.table.weight)


def test_book_code(ratings: pd.DataFrame) -> None:
    """The cells of the chapter on collaborative filtering, with the data that it uses replaced."""
    dls = CollabDataLoaders.from_df(ratings, item_name="title", rating_name="rating", bs=64, device="cpu")
    n_users, n_movies = len(dls.classes["userId"]), len(dls.classes["title"])
    x, y = dls.one_batch()
    assert tuple(x.shape) == (64, 2) and (n_users, n_movies) == (len(dls.classes["userId"]), len(dls.classes["title"]))

    class DotProduct(torch.nn.Module):
        def __init__(self, n_users: int, n_movies: int, n_factors: int):
            super().__init__()
            self.user_factors, self.movie_factors = torch.nn.Embedding(n_users, n_factors), torch.nn.Embedding(n_movies, n_factors)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.user_factors(x[:, 0]) * self.movie_factors(x[:, 1])).sum(dim=1)

    learn = Learner(dls, DotProduct(n_users, n_movies, 5), loss_func=torch.nn.MSELoss())
    with learn.no_bar():
        learn.fit_one_cycle(1, 5e-3)
        learn = collab_learner(dls, n_factors=5, y_range=(0, 5.5))
        learn.fit_one_cycle(1, 5e-3, wd=0.1)
    assert isinstance(learn.model, EmbeddingDotBias) and any(isinstance(cb, AverageForUnknown) for cb in learn.cbs)
    idxs = learn.model.i_bias.weight.squeeze().argsort()[:5]
    assert len([dls.classes["title"][i] for i in idxs]) == 5
    factors = learn.model.i_weight.weight
    idx = dls.classes["title"].o2i[dls.classes["title"][2]]
    assert torch.nn.CosineSimilarity(dim=1)(factors, factors[idx][None]).shape == (n_movies,)


def test_nothing_is_said_about_unknown_names_in_training(ratings: pd.DataFrame) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaders(ratings)
