"""Remembers the forms of requests, and how requests of a form begin."""

from typing import Final, TypeAlias

from servery_inference.codec import decode
from servery_inference.forms import Form, Places, cut
from servery_inference.repository import Repository
from servery_rpc.errors import ServeryError

MAX_BYTES: Final = 1 << 20
"""Larger requests and answers are read and written in other threads, and larger batches formed."""

_MAX_FORMS: Final = 512
_MAX_FORM_BYTES: Final = 2 << 10

Recognised: TypeAlias = tuple[Form, bytes, Places]
"""Of a request: its form, its id, and where its tensors are."""


class KnownForms:
    """Tells what requests mean. For one event loop.

    Args:
        repository: The models.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._forms: dict[bytes, Form | None] = {}
        self._begun: dict[int, tuple[bytes, Recognised]] = {}
        """By its length, what stands before the only tensor of a request without an id."""
        repository.on_change(self._forget)

    def recognise(self, message: bytes) -> Recognised | None:
        """Find out what a serialized `ModelInferRequest` means; None for the general way."""
        begun = self._begun.get(len(message))
        if begun is not None and message.startswith(begun[0]):  # All but the tensor is the same.
            return begun[1]
        if len(message) > MAX_BYTES or (parts := cut(message)) is None:
            return None
        form_bytes, request_id, places = parts
        try:
            form = self._form(form_bytes, message)
        except ServeryError:  # The general way finds out, and says so.
            return None
        if form is None or not (form.fits(places) and request_id.isascii()):
            return None
        recognised = form, request_id, places
        if len(places) == 1 and not request_id:
            self._begun[len(message)] = message[: places[0][0]], recognised
        return recognised

    def _form(self, key: bytes, message: bytes) -> Form | None:
        if key in self._forms:
            return self._forms[key]
        if len(key) > _MAX_FORM_BYTES:
            return None
        request = decode(message)
        servable = self._repository.find(request.model, request.version)
        if len(self._forms) >= _MAX_FORMS:
            self._forget()
        form = self._forms[key] = Form.of(request, servable)
        return form

    def _forget(self) -> None:
        """Let go of forms, which mean versions that may answer no more."""
        self._forms.clear()
        self._begun.clear()
