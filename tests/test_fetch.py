"`promptbench get` as a process: machines without an index, a process killed in the middle, servers that cannot go on; the real model where it was fetched"
import hashlib, http.server, io, os, random, signal, subprocess, sys, threading, time, zipfile
from pathlib import Path
import pytest

WEIGHTS = random.Random(0).randbytes(6<<20)

def wheel()->bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z: z.writestr('toy/weights.gguf', WEIGHTS); z.writestr('toy/__init__.py', 'raise SystemExit("code of a package was run")')
    return out.getvalue()
WHEEL = wheel()

class Index(http.server.BaseHTTPRequestHandler):
    "An index with one package; slow, or without ranges, if it is told so"
    slow,ranges,asked = 0.,True,[]
    def log_message(self, *_): pass
    def do_GET(self):
        if self.path.startswith('/simple/toy'): return self.give(b'<a href="/files/toy-1.0-py3-none-any.whl">toy-1.0-py3-none-any.whl</a>', 200, 'text/html')
        if self.path.startswith('/simple'): return self.send_error(404)
        start = int((self.headers.get('Range') or 'bytes=0-')[6:-1]); Index.asked.append(start)
        if start>=len(WHEEL): return self.send_error(416)
        start = start if self.ranges else 0
        self.give(WHEEL[start:], 206 if start else 200, 'application/zip', self.slow)
    def give(self, body, code, kind, slow=0.):
        self.send_response(code); self.send_header('Content-Type', kind); self.send_header('Content-Length', str(len(body))); self.end_headers()
        try:
            for at in range(0, len(body), 1<<18): self.wfile.write(body[at:at+(1<<18)]); self.wfile.flush(); time.sleep(slow)
        except OSError: pass # whoever asked was killed

@pytest.fixture
def index():
    Index.slow,Index.ranges,Index.asked = 0.,True,[]
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Index); threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/simple'
    server.shutdown(); server.server_close()

# A process in which the toy is in the catalogue, then the command line as it is
CODE = f'''
import sys
from promptbench.base.catalogue import Resource, add
from promptbench.cli.main import main
add('resources', 'toy', Resource(what='a toy', package='toy', version='1.0', file='toy-1.0-py3-none-any.whl', size={len(WHEEL)},
    sha256={hashlib.sha256(WHEEL).hexdigest()!r}, licence='CC0', members=('toy/weights.gguf',)))
sys.argv = ['promptbench', *sys.argv[1:]]
main()
'''
def start(cache, *args, **env):
    clean = {k: v for k,v in os.environ.items() if not k.startswith('PIP_')}
    return subprocess.Popen([sys.executable,'-c',CODE,*args], env={**clean, 'PIP_CONFIG_FILE':os.devnull, 'PROMPTBENCH_CACHE':str(cache), 'PROMPTBENCH_QUIET':'1', **env},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
def end(p): out,err = p.communicate(timeout=120); return p.returncode,out,err
def left(cache): return sorted(p.name for p in (cache/'got').glob('*') if not p.name.endswith('.lock'))

@pytest.mark.parametrize('name,where,said', [
    ('smollm2', dict(PIP_NO_INDEX='1'), 'pip is told to use none'), ('smollm2', dict(PIP_INDEX_URL='http://127.0.0.1:9/'), 'check the network'),
    ('bigbench', dict(PIP_INDEX_URL='http://127.0.0.1:9/'), 'check the network'), ('smollm2', {}, 'has no such package')])
def test_without_an_index_one_sentence_and_nothing_half_there(name, where, said, tmp_path, index):
    "An index that is forbidden, that does not answer, that has not the package (the last one: our own server)"
    code,out,err = end(start(tmp_path, 'get', name, **(where or dict(PIP_INDEX_URL=index))))
    assert (code,out)==(2,'') and err.count('\n')==1 and err.startswith(f'promptbench: {name} ') and said in err and 'Traceback' not in err
    assert left(tmp_path)==[]

def test_whoever_asks_for_the_model_is_told_how_to_get_it(tmp_path):
    code,out,err = end(start(tmp_path, 'evaluate', '--backbone', 'smollm2', '--suite', 'microworld'))
    assert (code,out)==(2,'') and err.count('\n')==1 and 'promptbench get smollm2' in err

def test_killed_in_the_middle_it_goes_on_where_it_was(tmp_path, index):
    Index.slow = .15; p = start(tmp_path, 'get', 'toy', PIP_INDEX_URL=index); part = tmp_path/'got'/'.toy-1.0-py3-none-any.whl.part'
    until = time.monotonic()+60
    while not (part.exists() and part.stat().st_size) and time.monotonic()<until: time.sleep(.02)
    p.send_signal(signal.SIGKILL); assert end(p)[0]==-signal.SIGKILL
    have = part.stat().st_size; assert 0<have<len(WHEEL) and left(tmp_path)==[part.name] # no folder that looks whole
    Index.slow,Index.asked = 0.,[]; code,out,err = end(start(tmp_path, 'get', 'toy', PIP_INDEX_URL=index))
    assert code==0 and out.startswith('toy: ') and Index.asked==[have] # the rest only
    assert left(tmp_path)==['toy-1.0'] and (tmp_path/'got'/'toy-1.0'/'weights.gguf').read_bytes()==WEIGHTS
    Index.asked = []; assert end(start(tmp_path, 'get', 'toy', PIP_INDEX_URL=index))[0]==0 and Index.asked==[] # it is there

@pytest.mark.parametrize('what', ['whole','server without ranges','of another file'])
def test_whatever_part_is_there_the_file_becomes_the_pinned_one(what, tmp_path, index):
    part = tmp_path/'got'/'.toy-1.0-py3-none-any.whl.part'; part.parent.mkdir(parents=True)
    part.write_bytes(WHEEL if what=='whole' else WHEEL[:1<<20] if what=='server without ranges' else b'x'*(1<<20)); Index.ranges = what!='server without ranges'
    code,out,err = end(start(tmp_path, 'get', 'toy', PIP_INDEX_URL=index))
    if what=='of another file': # believed by its hash only: thrown away, and the next call is clean
        assert code==2 and 'thrown away' in err and left(tmp_path)==[]; code,out,err = end(start(tmp_path, 'get', 'toy', PIP_INDEX_URL=index))
    assert code==0 and left(tmp_path)==['toy-1.0'] and (tmp_path/'got'/'toy-1.0'/'weights.gguf').read_bytes()==WEIGHTS

def test_two_at_once_fetch_once(tmp_path, index):
    Index.slow = .05; both = [start(tmp_path, 'get', 'toy', PIP_INDEX_URL=index) for _ in range(2)]
    assert [end(p)[0] for p in both]==[0,0] and Index.asked==[0]
