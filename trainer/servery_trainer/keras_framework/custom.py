"""The network that a module of the caller builds, held against what the rest of a job needs."""

from typing import Any

import keras

from servery_trainer.custom_code import CustomCodeError
from servery_trainer.custom_module import call_build, failure
from servery_trainer.networks import Custom
from servery_trainer.sizes import MAX_PARAMETERS


def build(family: Custom, inputs: keras.KerasTensor, outputs: int, vocabulary: int) -> keras.Model:
    """See `families.build`.

    Args:
        family: The module and its parameters.
        inputs: The features.
        outputs: Numbers that the network has to say of each row.
        vocabulary: See `Framework.build`.

    Raises:
        CustomCodeError: The module failed, or built something else.
    """
    built = call_build(family, tuple(inputs.shape[1:]), outputs, vocabulary)
    if not isinstance(built, keras.Model):
        raise _wrong(f"build must return a keras.Model, not {type(built).__name__}")
    try:
        said: Any = built(inputs)
    except Exception as error:
        raise failure(error, "WRONG_RESULT") from error
    if not isinstance(said, keras.KerasTensor):
        raise _wrong(f"the model must have one output, not {type(said).__name__}")
    if tuple(said.shape) != (None, outputs) or said.dtype != "float32":
        shown = f"{said.dtype} {list(said.shape)}"
        raise _wrong(f"the output of the model is {shown}; it must be float32 [None, {outputs}]")
    model = keras.Model(inputs, said)
    if model.count_params() > MAX_PARAMETERS:
        what = f"the model has {model.count_params()} weights, the limit is {MAX_PARAMETERS}"
        raise _wrong(what)
    if not model.trainable_variables:
        raise _wrong("the model has no weights to train")
    return model


def _wrong(what: str) -> CustomCodeError:
    return CustomCodeError("WRONG_RESULT", what)
