"The comments beside arguments and fields, for the site and for the tests."
import inspect

from fastcore.docments import docments


def comments(value):
    "What the source says beside each parameter or field, inherited fields included."
    found = {}
    for part in reversed(value.__mro__) if inspect.isclass(value) else [value]:
        try: found |= {k: v for k, v in docments(part).items() if v and k not in ('self', 'return')}
        except Exception: continue      # values without source have no comments
    return found
