"""Everything the lesson on texts uses, for `from coursekit.text.all import *`, and the names that the fast.ai book uses.

`Path.ls()`, which lists a folder, is added to Python's paths, because the book calls it. Written by hand; a test keeps it within its budget.
"""

import math
import os
import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from numpy import array
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from coursekit.hints import hint_errors as _hint_errors, no_such_name as _no_such_name
from coursekit.core import default_device, lazy_module, seeded
from coursekit.data.batch import Batch
from coursekit.data.block import Block, CategoryBlock, MultiCategoryBlock, RegressionBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.download import URLs, course_data, data_mode, untar_data
from coursekit.data.items import ColReader, ColSplitter, FuncSplitter, GrandparentSplitter, IndexSplitter, RandomSplitter, parent_label
from coursekit.data.items import list_folder as _list_folder
from coursekit.data.loader import DataLoader, DataLoaders
from coursekit.deploy.hub import from_hub, load_learner, push_to_hub
from coursekit.display import display_table, finish, new_axes
from coursekit.interpret.embeddings import EmbeddingMap, pca
from coursekit.interpret.interpretation import ClassificationInterpretation, Interpretation
from coursekit.text.awd_lstm import AWD_LSTM, LanguageModel, LSTMLayer
from coursekit.text.block import TextBlock
from coursekit.text.callbacks import ModelResetter, RNNRegularizer
from coursekit.text.classifier import TextClassifier
from coursekit.text.corpus import Corpus, tokenize_texts
from coursekit.text.data import TextDataLoaders, get_text_files
from coursekit.text.dropouts import EmbeddingDropout, RNNDropout, WeightDropout
from coursekit.text.generate import generate, word_probs
from coursekit.text.learner import language_model_learner, text_classifier_learner
from coursekit.text.padding import LengthSampler, TextDataset, pad_texts
from coursekit.text.stream import LMDataLoader, NextTokens, StreamDataset, TokenStream
from coursekit.text.text_learner import LMLearner, TextLearner
from coursekit.text.tokens import SPECIALS, CharTokenizer, SubwordTokenizer, Tokenizer, WordTokenizer, clean_html
from coursekit.text.transformer import Transformer
from coursekit.text.vocab import Numericalize, make_vocab
from coursekit.training.callback import Callback, CancelBatchException, CancelEpochException, CancelFitException, State
from coursekit.training.callbacks.checkpoint import Checkpoint
from coursekit.training.callbacks.gradient import GradientAccumulation, GradientClip
from coursekit.training.callbacks.loggers import CSVLogger
from coursekit.training.callbacks.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from coursekit.training.count_metrics import F1Score, FBeta, Precision, Recall
from coursekit.training.layers import SigmoidRange, emb_sz_rule, num_params
from coursekit.training.learner import Learner
from coursekit.training.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLoss, L1LossFlat, Loss, MSELossFlat
from coursekit.training.metrics import (
    Metric, Perplexity, RocAuc, RocAucBinary, accuracy, accuracy_multi, error_rate, for_target, mae, mse, rmse
)
from coursekit.training.notation import Module, first, noop, range_of, set_seed, tensor, to_cpu, to_device, to_np
from coursekit.training.optimizers import SGD, Adam, AdamW, RMSProp
from coursekit.training.predictions import Prediction, Preds
from coursekit.training.schedules import minimum, slide, steep, valley
from coursekit.tuning import Choice, LogUniform, Trials, Uniform, trials

pd = lazy_module("pandas")
plt = lazy_module("matplotlib.pyplot")
Path.ls = _list_folder  # type: ignore[attr-defined]

__all__ = [name for name in dir() if not name.startswith("_") and name != "lazy_module"]
__getattr__ = _no_such_name(__name__)
_hint_errors()
