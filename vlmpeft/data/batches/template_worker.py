"""The process that renders chat templates, which strangers write: it has limits and knows no secrets.

Run by `render`, never imported: `python -I template_worker.py SPARE_BYTES TRANSFORMERS_DIR PATH...`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

Request = dict[str, Any]


def main() -> None:
    """Answer requests on stdin, one by one, until it is closed."""
    spare_bytes, transformers_dir, *sys.path[:] = sys.argv[1:]
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing but answers is written there
    try:
        answer = _answering(_load_rendering(transformers_dir))
    except Exception as error:  # noqa: BLE001 - it is told, not handled
        _write(answers, {"failure": f"{type(error).__name__}: {_told(error)}"})
        return
    _limit(int(spare_bytes))
    _write(answers, {})
    while (request := _read(requests)) is not None:
        with _alarm(request["alarm_seconds"]):
            _write(answers, answer(request))


def _load_rendering(transformers_dir: str) -> Any:
    """The module of transformers that renders, without the rest, which takes ten times as long to import."""
    try:
        _stand_in(transformers_dir)
        return importlib.import_module("transformers.utils.chat_template_utils")
    except (ImportError, AttributeError):  # another version of transformers, which needs more
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
            del sys.modules[name]
        return importlib.import_module("transformers.utils.chat_template_utils")


def _stand_in(transformers_dir: str) -> None:
    """Put the few names that the module imports where it looks for them."""
    sys.modules["transformers"] = package = types.ModuleType("transformers")
    package.__path__ = [transformers_dir]
    sys.modules["transformers.utils"] = utils = types.ModuleType("transformers.utils")
    utils.__path__ = [str(Path(transformers_dir) / "utils")]
    imports = types.ModuleType("transformers.utils.import_utils")
    imports.__dict__["is_jinja_available"] = lambda: True
    # of tensors and pictures it wants the types alone, and none is sent here
    imports.__dict__["is_torch_available"] = imports.__dict__["is_vision_available"] = lambda: False
    utils.__dict__["logging"] = types.SimpleNamespace(get_logger=lambda _: None)
    sys.modules["transformers.utils.import_utils"] = imports


def _answering(utils: Any) -> Callable[[Request], dict[str, Any]]:
    from jinja2 import TemplateError

    turns = _neighbour("turns")

    def answer(request: Request) -> dict[str, Any]:
        def render(chat: Any, add_generation_prompt: bool) -> str:
            (text,), _ = utils.render_jinja_template(
                [chat],
                chat_template=request["template"],
                add_generation_prompt=add_generation_prompt,
                **request["variables"],
            )
            if len(text) > request["max_characters"]:
                raise turns.TooLongError
            return text

        try:
            found = turns.locate(
                render, request["chat"], request["turns"], with_ends=request["with_ends"]
            )
        except turns.MovingTurnError:
            return {"refusal": "moving"}
        except turns.TooLongError:
            return {"refusal": "long"}
        except MemoryError:
            return {"refusal": "memory"}
        except TemplateError as error:
            return {"refusal": "template", "reason": _told(error)}
        except Exception as error:  # noqa: BLE001 - a template can raise whatever there is
            return {"refusal": "failure", "reason": f"{type(error).__name__}: {_told(error)}"}
        return {"text": found.text, "spans": found.spans, "ends": found.ends}

    return answer


def _neighbour(name: str) -> Any:
    """The module beside this file, whatever `vlmpeft` there is on the paths."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _told(error: Exception) -> str:
    return str(error)[:2000]


def _limit(spare_bytes: int) -> None:
    """No more memory than there is now and `spare_bytes`, and no files; where the system can do that."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + spare_bytes
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))
        for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
            resource.setrlimit(kind, (0, 0))


@contextlib.contextmanager
def _alarm(seconds: int):  # noqa: ANN202
    """End this process after some time, in case the one that watches it is gone."""
    if not hasattr(signal, "alarm"):
        yield
        return
    signal.alarm(seconds)
    yield
    signal.alarm(0)


def _read(stream: BinaryIO) -> Request | None:
    length = int.from_bytes(stream.read(8), "big")
    data = stream.read(length)
    return json.loads(data.decode("utf-8", "surrogatepass")) if data else None


def _write(stream: BinaryIO, answer: dict[str, Any]) -> None:
    data = json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass")
    stream.write(len(data).to_bytes(8, "big") + data)
    stream.flush()


if __name__ == "__main__":
    main()
