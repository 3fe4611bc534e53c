"""What the build does beyond pyproject.toml, which names these classes: the wheel holds data, run pages and lessons.

In git they lie at the top, in `data/` and `nbs/`; in a wheel inside the package, in `promptbench/_files/`, where
`base.core.home` finds them. An editable install copies nothing. A build leaves nothing behind in the source tree."""
import atexit, shutil, tempfile
from pathlib import Path
from setuptools.command.build import build
from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

FOLDERS = ('data','nbs/runs','nbs/lessons')
LEFT_OUT = ('data/pictures',)   # only the README shows them
INSIDE = 'promptbench/_files'

def brought()->list[str]:
    "What the wheel brings beside modules, as paths in the source tree"
    found = [p for folder in FOLDERS for p in Path(folder).rglob('*') if p.is_file()]
    names = [p.as_posix() for p in found if not any(part.startswith(('.','__')) for part in p.parts)]
    missing = [f for f in FOLDERS if not any(n.startswith(f+'/') for n in names)]
    if missing: raise SystemExit(f'no files in {missing}: this is not the whole source of promptbench')
    return sorted(n for n in names if not n.startswith(tuple(f+'/' for f in LEFT_OUT)))

class BuildPy(build_py):
    "Modules as ever, and what the wheel brings; what it says of its files also fills the source distribution"
    def _mapping(self)->dict[str,str]: # place in the build -> place in the source tree
        return {} if self.editable_mode else {str(Path(self.build_lib)/INSIDE/f): f for f in brought()}
    def run(self):
        super().run()
        for target,source in self._mapping().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target, preserve_mode=False)
    def get_source_files(self): return [*super().get_source_files(), *brought(), Path(__file__).name]
    def get_outputs(self, include_bytecode=True): return [*super().get_outputs(include_bytecode), *self._mapping()]
    def get_output_mapping(self): return super().get_output_mapping()|self._mapping()

class Build(build):
    "In a folder that is thrown away: modules of an earlier build would get into the wheel"
    def initialize_options(self):
        super().initialize_options()
        self.build_base = tempfile.mkdtemp(prefix='promptbench-build-')
        atexit.register(shutil.rmtree, self.build_base, ignore_errors=True)

class EggInfo(egg_info):
    "Removes its folder at the end, unless it was there before"
    def run(self):
        if not Path(self.egg_info).exists(): atexit.register(shutil.rmtree, self.egg_info, ignore_errors=True)
        super().run()
