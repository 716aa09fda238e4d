"""SeqIO examples -> the fields of our batches."""

from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf

_SPEC = seqio.FeatureConverter.FeatureSpec


class EncDecConverter(seqio.FeatureConverter):
    """Pads `inputs` and `targets` and adds `loss_mask`, 1.0 on target tokens.

    Decoder inputs are not part of it: the model shifts targets itself.

    Args:
      pad_id: the vocabulary's padding id.
      **options: see `seqio.FeatureConverter`.
    """

    TASK_FEATURES = {name: _SPEC(dtype=tf.int32) for name in ("inputs", "targets")}
    MODEL_FEATURES = {**TASK_FEATURES, "loss_mask": _SPEC(dtype=tf.float32)}
    PACKING_FEATURE_DTYPES: Mapping[str, tf.DType] = {}

    def __init__(self, pad_id: int = 0, **options: Any) -> None:
        super().__init__(pack=False, **options)
        self._pad_id = pad_id

    def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
        def convert(features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            sizes = task_feature_lengths
            mask = tf.ones_like(features["targets"], tf.float32)
            return {
                **{name: _pad(features[name], sizes[name], self._pad_id) for name in ("inputs", "targets")},
                "loss_mask": _pad(mask, sizes["targets"], 0.0),
                **{name: features[name] for name in self._passthrough_features},
            }

        return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
        """Returns the length of each of our fields.

        Args:
          task_feature_lengths: lengths of `inputs` and `targets`, in tokens.

        Returns:
          The same and that of `loss_mask`.
        """
        return {**task_feature_lengths, "loss_mask": task_feature_lengths["targets"]}


def _pad(values: tf.Tensor, length: int, fill: float) -> tf.Tensor:
    filling = tf.fill([length - tf.shape(values)[0]], tf.cast(fill, values.dtype))
    return tf.ensure_shape(tf.concat([values, filling], axis=0), [length])
