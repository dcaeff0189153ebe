"""For the reference: the roles of docstrings as plain code, since Markdown has no roles."""

import re

from griffe import Extension, Object

_ROLE = re.compile(r":(?:func|meth|class|mod|data|attr|exc):`~?([^`]+)`")


class PlainRoles(Extension):
    """Reads the docstring of every object that is loaded."""

    def on_object(self, *, obj: Object, **kwargs: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
