"""A search of AdaNet's TensorFlow framework, on its own example candidates; the yardstick of `adanet.py --parts framework`.

    PYTHON37 adanet_framework.py DATA.npz WIDTH ROUNDS STEPS RATE

PYTHON37 is a Python 3.7 with tensorflow-cpu 2.2, protobuf < 3.21 and adanet 0.9, the last versions that fit together. DATA.npz holds
x, y, x_test, y_test of two classes. Each round trains a network as deep as the last that was added and one a layer deeper, a step seeing all
rows, and learns mixture weights. Prints JSON: seconds (imports left out), accuracy on the test rows, rounds made.
"""

import json
import os
import sys
import tempfile
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import adanet
import numpy as np
import tensorflow as tf
from adanet.examples import simple_dnn


def feed(x, y, repeat):
    def input_fn(*_):
        return tf.data.Dataset.from_tensors(({"x": x}, y[:, None])).repeat(None if repeat else 1)

    return input_fn


def main():
    tf.compat.v1.logging.set_verbosity(tf.compat.v1.logging.ERROR)
    data = np.load(sys.argv[1])
    width, rounds, steps = map(int, sys.argv[2:5])
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        estimator = adanet.Estimator(
            head=tf.estimator.BinaryClassHead(),
            subnetwork_generator=simple_dnn.Generator(
                feature_columns=[tf.feature_column.numeric_column("x", shape=data["x"].shape[1])],
                optimizer=tf.compat.v1.train.AdamOptimizer(float(sys.argv[5])),
                layer_size=width,
                initial_num_layers=1,
                learn_mixture_weights=True,
                seed=0,
            ),
            max_iteration_steps=steps,
            max_iterations=rounds,
            evaluator=adanet.Evaluator(input_fn=feed(data["x"], data["y"], False), steps=1),
            model_dir=folder,
            config=tf.estimator.RunConfig(save_summary_steps=10**6, log_step_count_steps=10**6, tf_random_seed=0),
        )
        estimator.train(feed(data["x"], data["y"], True), max_steps=rounds * steps)
        seconds = time.time() - began
        found = estimator.evaluate(feed(data["x_test"], data["y_test"], False), steps=1)
    print(json.dumps({"seconds": seconds, "accuracy": float(found["accuracy"]), "rounds": int(found["iteration"]) + 1}))


if __name__ == "__main__":
    main()
