"""A network of forecasts begins with the linear one, and keeps it if learning only adds noise."""

from pathlib import Path

import numpy as np
import pytest

from servery_trainer import problems, training
from servery_trainer.examples import load_examples
from servery_trainer.fitting import fit_preprocessing
from servery_trainer.frameworks import Framework
from servery_trainer.hyperparameters import Training
from servery_trainer.networks import Dense
from servery_trainer.spec import parse_spec
from tests.trainer.specs import table

pytestmark = pytest.mark.slow  # frameworks are imported: seconds


def test_what_is_worse_than_the_first_forecast_is_not_kept(
    framework: Framework, tmp_path: Path
) -> None:
    path = tmp_path / "series.csv"
    path.write_text("t,y\n" + "".join(f"{t},{2 * t}\n" for t in range(80)))
    spec = parse_spec(table("forecasting", time="t", target="y", window=4, horizon=2))
    examples = load_examples(spec, path)
    train, test = examples.split.train, examples.split.test
    settings = Training(
        max_epochs=2, batch_size=16, learning_rate=0.1, early_stopping_patience=2, seed=0
    )
    _, objective = problems.pose(examples.target, train, settings)
    preprocessing = fit_preprocessing(spec, examples.types, examples.take(train))
    family = Dense(hidden_units=(8,), dropout=0.0)
    network = framework.build(family, preprocessing.feature_shape, 2, 0, seed=0)
    network.set_weights([np.zeros_like(array) for array in network.get_weights()])

    learned, held_out = (
        training.Part(examples, rows, preprocessing) for rows in (train, examples.split.validation)
    )
    epochs = training.fit(framework, network, objective, learned, held_out, settings, str)

    assert [epoch.number for epoch in epochs] == [0, 1, 2]
    assert epochs[0].validation_loss < min(epoch.validation_loss for epoch in epochs[1:])
    answers = framework.answering([network], objective).predict(
        preprocessing.apply(examples.take(test))
    )
    np.testing.assert_allclose(answers, examples.target.values[test], rtol=1e-5)
