"""TFRecord files: their framing, and the tf.train.Example messages inside."""
