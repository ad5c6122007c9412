"""Rules of operators that work number by number, with broadcasting where they take several."""

import math
from collections.abc import Callable, Iterator
from typing import Final

from servery_trainer.gradients.step import Rule, Step

Pairs = Iterator[tuple[str, str]]


def _add(s: Step) -> Pairs:
    for place in range(len(s.node.input)):
        if s.active(place):
            yield s.fitted(place, s.gradient)


def _sub(s: Step) -> Pairs:
    if s.active(0):
        yield s.fitted(0, s.gradient)
    if s.active(1):
        yield s.fitted(1, s.elementwise("Neg", s.gradient))


def _mul(s: Step) -> Pairs:
    for place in (0, 1):
        if s.active(place):
            yield s.fitted(place, s.elementwise("Mul", s.gradient, s.node.input[1 - place]))


def _div(s: Step) -> Pairs:
    over = s.elementwise("Div", s.gradient, s.node.input[1])
    if s.active(0):
        yield s.fitted(0, over)
    if s.active(1):
        yield s.fitted(1, s.elementwise("Neg", s.elementwise("Mul", over, s.y)))


def _pow(s: Step) -> Pairs:
    exponent = s.emit.value(s.node.input[1], "an exponent")
    lower = s.emit.constant(exponent - 1)
    slope = s.elementwise("Mul", s.elementwise("Pow", s.x, lower), s.emit.constant(exponent))
    yield s.fitted(0, s.elementwise("Mul", s.gradient, slope))


def _extreme(s: Step) -> Pairs:
    for place, name in enumerate(s.node.input):
        if s.active(place):
            yield s.fitted(place, s.where("Equal", name, s.y, gradient=s.gradient))


def _mean(s: Step) -> Pairs:
    count = s.emit.constant(len(s.node.input))
    share = s.elementwise("Div", s.gradient, count)
    for place in range(len(s.node.input)):
        if s.active(place):
            yield s.fitted(place, share)


def _where(s: Step) -> Pairs:
    condition, nothing = s.x, s.emit.constant(0)
    if s.active(1):
        yield s.fitted(1, s.elementwise("Where", condition, s.gradient, nothing))
    if s.active(2):
        yield s.fitted(2, s.elementwise("Where", condition, nothing, s.gradient))


def _clip(s: Step) -> Pairs:
    yield s.x, s.where("Equal", s.x, s.y, gradient=s.gradient)


def _relu(s: Step) -> Pairs:
    yield s.x, s.where("Greater", s.y, s.emit.constant(0), gradient=s.gradient)


def _leaky(s: Step) -> Pairs:
    positive = s.where("Greater", s.x, s.emit.constant(0), gradient=s.gradient)
    negative = s.where("LessOrEqual", s.x, s.emit.constant(0), gradient=s.gradient)
    slope = s.emit.constant(s.attribute("alpha", 0.01))
    yield s.x, s.elementwise("Add", positive, s.elementwise("Mul", negative, slope))


def _scaled(slope: Callable[[Step], str]) -> Rule:
    """Return the rule of an operator with one input, from what writes its slope."""

    def rule(s: Step) -> Pairs:
        yield s.x, s.elementwise("Mul", s.gradient, slope(s))

    return rule


def _passed(s: Step) -> Pairs:
    yield s.x, s.gradient


def _less_square(s: Step) -> str:
    return s.elementwise("Sub", s.emit.constant(1), s.elementwise("Mul", s.y, s.y))


def _times_rest(s: Step) -> str:
    return s.elementwise("Mul", s.y, s.elementwise("Sub", s.emit.constant(1), s.y))


def _bell(s: Step) -> str:
    """2 / sqrt(pi) exp(-x²), the slope of erf."""
    square = s.elementwise("Neg", s.elementwise("Mul", s.x, s.x))
    factor = s.emit.constant(2 / math.sqrt(math.pi))
    return s.elementwise("Mul", s.elementwise("Exp", square), factor)


def _half_inverse(s: Step) -> str:
    return s.elementwise("Div", s.emit.constant(0.5), s.y)


def _minus_square(s: Step) -> str:
    return s.elementwise("Neg", s.elementwise("Mul", s.y, s.y))


RULES: Final[dict[str, Rule]] = {
    "Abs": _scaled(lambda s: s.elementwise("Sign", s.x)),
    "Add": _add,
    "Cast": _passed,
    "Clip": _clip,
    "Div": _div,
    "Dropout": _passed,
    "Erf": _scaled(_bell),
    "Exp": _scaled(lambda s: s.y),
    "Identity": _passed,
    "LeakyRelu": _leaky,
    "Log": _scaled(lambda s: s.elementwise("Reciprocal", s.x)),
    "Max": _extreme,
    "Mean": _mean,
    "Min": _extreme,
    "Mul": _mul,
    "Neg": _scaled(lambda s: s.emit.constant(-1)),
    "Pow": _pow,
    "Reciprocal": _scaled(_minus_square),
    "Relu": _relu,
    "Sigmoid": _scaled(_times_rest),
    "Softplus": _scaled(lambda s: s.elementwise("Sigmoid", s.x)),
    "Sqrt": _scaled(_half_inverse),
    "Sub": _sub,
    "Sum": _add,
    "Tanh": _scaled(_less_square),
    "Where": _where,
}
