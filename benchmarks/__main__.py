"""`python -m benchmarks NAME [options]` is `python -m benchmarks.NAME [options]`; without a name, what there is."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

PLACE = Path(__file__).parent


def commands() -> dict[str, str]:
    """Name -> first line of its docstring, of every module here that has a `main`; none is imported for that."""
    found = {}
    for path in sorted(PLACE.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        has_main = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
        if has_main and path.stem != "__main__":
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main(arguments: list[str]) -> int:
    known = commands()
    if not arguments or arguments[0] not in known:
        asked = bool(arguments) and arguments[0] in ("-h", "--help")
        if arguments and not asked:
            print(f"NAME: got {arguments[0]}; expected {', '.join(known)}.", file=sys.stderr)
            return 2
        for name, line in known.items():
            print(f"{name:11} {line}")
        return 0 if asked else 2
    name, *rest = arguments
    # Every main reads its options from here.
    sys.argv = [f"python -m benchmarks {name}", *rest]
    code: int | None = importlib.import_module(f"benchmarks.{name}").main()
    return code or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
