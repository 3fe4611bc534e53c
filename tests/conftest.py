"What several test files share"
import os
from pathlib import Path
import pytest

@pytest.fixture(scope='session')
def shared():
    "The folder of real data beside the checkout; tests that need it are skipped where it is absent"
    place = Path(os.environ.get('PROMPTBENCH_SHARED') or Path(__file__).resolve().parents[2]/'shared'/'data')
    if not (place/'real'/'manifest.json').exists(): pytest.skip(f'no real data: set PROMPTBENCH_SHARED to a folder that holds real/ and templates/')
    return place
