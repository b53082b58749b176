import json
import subprocess
import sys
from importlib.metadata import version

_WHAT_A_WORKER_IMPORTS = """
import json, sys
from lmd.engine import bindings
bindings.take_alone()
from lmd.engine.llama import Backend
from lmd.engine.instance import EngineInstance
import lmd.engine.encoder
print(json.dumps([sorted({name.partition(".")[0] for name in sys.modules}), Backend().facts().llama_cpp_python]))
"""


def test_the_bindings_come_without_the_high_level_package_and_know_their_version():
    ran = subprocess.run(
        [sys.executable, "-c", _WHAT_A_WORKER_IMPORTS], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    modules, said = json.loads(ran.stdout)
    assert "llama_cpp" in modules
    assert not {"jinja2", "diskcache", "sqlite3", "multiprocessing"} & set(modules)
    assert said == version("llama-cpp-python")
