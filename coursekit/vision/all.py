"""Everything the vision lessons use, for `from coursekit.vision.all import *`, and the names that the fast.ai book uses.

Two methods are added to classes of others, because the book calls them: `Path.ls()` lists a folder, and `to_thumb(128)` of Pillow's images gives a
small copy. Written by hand; a test keeps it within its budget.
"""

import json
import math
import os
import random
import re
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from numpy import array
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision import models
from torchvision.models import (alexnet, convnext_tiny, densenet121, densenet161, densenet169, densenet201, efficientnet_b0, mobilenet_v2,
                                mobilenet_v3_large, mobilenet_v3_small, resnet18, resnet34, resnet50, resnet101, resnet152, squeezenet1_0,
                                squeezenet1_1, vgg11_bn, vgg16_bn, vgg19_bn)
from tqdm import tqdm

from coursekit.training.callback import (
    Callback, CancelBatchException, CancelEpochException, CancelFitException, CancelStepException, CancelTrainException,
    CancelValidateException, ParamScheduler, State
)
from coursekit.training.recorder import Recorder
from coursekit.training.callbacks.checkpoint import Checkpoint
from coursekit.training.callbacks.ema import EMA
from coursekit.training.callbacks.gradient import GradientAccumulation, GradientClip
from coursekit.training.callbacks.loggers import CSVLogger
from coursekit.training.callbacks.mixup import CutMix, MixUp
from coursekit.training.callbacks.stats import ActivationStats
from coursekit.training.callbacks.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from coursekit.hints import hint_errors as _hint_errors, no_such_name as _no_such_name
from coursekit.core import coursekit_home, default_device, lazy_module, seeded, show_path
from coursekit.interpret.curves import set_thresh, threshold_curve, wilson
from coursekit.data.block import Block, CategoryBlock, MultiCategoryBlock, RegressionBlock
from coursekit.data.datablock import DataBlock, Datasets
from coursekit.data.dataset import Dataset
from coursekit.data.transforms import BatchTransform, ItemTransform
from coursekit.data.download import URLs, course_data, data_mode, download_url, untar_data
from coursekit.data.items import (ColReader, ColSplitter, FuncSplitter, GrandparentSplitter, IndexSplitter, RandomSplitter,
                                  RegexLabeller, get_files, get_image_files, parent_label, using_attr)
from coursekit.data.items import list_folder as _list_folder
from coursekit.data.loader import Batch, DataLoader, DataLoaders
from coursekit.interpret.embeddings import embeddings, pca
from coursekit.interpret.heatmaps import cam, grad_cam, heat_maps
from coursekit.training.hooks import hook_outputs
from coursekit.deploy.hub import from_hub, load_learner, push_to_hub
from coursekit.interpret.interpretation import ClassificationInterpretation, Interpretation
from coursekit.interpret.receptive import receptive_field, show_patches, strongest_patches
from coursekit.interpret.segmentation import SegmentationInterpretation
from coursekit.interpret.landscape import flat_weights, loss_landscape
from coursekit.training.layers import AdaptiveConcatPool2d, create_head, num_params
from coursekit.training.learner import Learner
from coursekit.training.notation import (
    ConvLayer, Flatten, HBox, Module, NormType, VBox, first, noop, plot_function, range_of, sequential, set_seed, show_images,
    show_titled_image, subplots, tensor, to_cpu, to_device, to_np
)
from coursekit.training.predictions import Prediction, Preds
from coursekit.training.losses import (
    BCEWithLogitsLossFlat, CrossEntropyLossFlat, DiceLoss, FocalLoss, L1LossFlat, LabelSmoothingCrossEntropy, Loss, MSELossFlat
)
from coursekit.training.count_metrics import (
    Dice, DiceMulti, F1Score, F1ScoreMulti, FBeta, FBetaMulti, JaccardCoeff, JaccardCoeffMulti, JaccardMulti, PixelAccuracy, Precision,
    PrecisionMulti, Recall, RecallMulti
)
from coursekit.training.metrics import (
    Metric, Perplexity, RocAuc, RocAucBinary, accuracy, accuracy_multi, error_rate, mae, mse, rmse, top_k_accuracy
)
from coursekit.training.optimizers import SGD, Adam, AdamW, RMSProp
from coursekit.training.schedules import (
    SchedCos, SchedExp, SchedLin, SchedNo, combine_scheds, combined_cos, minimum, one_cycle, slide, steep, valley
)
from coursekit.display import display_table, finish, show_grid, show_image
from coursekit.tuning import Choice, LogUniform, Trials, Uniform, trials
from coursekit.vision.collect import download_images, resize_images
from coursekit.vision.block import ImageBlock
from coursekit.vision.data import ImageDataLoaders
from coursekit.vision.gan import NoiseBlock, SampleGrids, gan_learner, samples, tiled
from coursekit.vision.generative import Crappify, FeatureLoss, enhance, generator_learner, psnr
from coursekit.vision.points import PointBlock, point_error
from coursekit.vision.images import ImageError, check_images, load_image, verify_images
from coursekit.vision.images import to_uint8_tensor as image2tensor
from coursekit.vision.learner import cnn_learner, pretrained, vision_learner
from coursekit.vision.masks import MaskBlock, class_colors
from coursekit.vision.models import course_arch, coursenet, num_features_model, xresnet18, xresnet34, xresnet50
from coursekit.vision.pil import PILImage, PILImageBW, PILMask
from coursekit.vision.pil import to_thumb as _to_thumb
from coursekit.vision.plan import plan_data
from coursekit.vision.augment import Augment, Normalize, aug_transforms, cifar_stats, imagenet_stats, mnist_stats
from coursekit.vision.resize import PadMode, RandomResizedCrop, Resize, ResizeMethod
from coursekit.vision.segmentation import SegmentationDataLoaders, predict_mask, unet_learner
from coursekit.widgets import ImageClassifierCleaner, lr_explorer, upload_and_predict

pd = lazy_module("pandas")
plt = lazy_module("matplotlib.pyplot")
widgets = lazy_module("ipywidgets")
Path.ls = _list_folder  # type: ignore[attr-defined]
Image.Image.to_thumb = _to_thumb  # type: ignore[attr-defined]

__all__ = [name for name in dir() if not name.startswith("_") and name != "lazy_module"]
__getattr__ = _no_such_name(__name__)
_hint_errors()
