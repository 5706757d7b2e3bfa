from ..hints import no_such_name as _no_such_name

__getattr__ = _no_such_name(__name__)  # for `import *`
