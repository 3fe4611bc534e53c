"The benches run, and say what they must; their figures are not looked at here"
import csv, importlib.util, json, os, subprocess, sys
from pathlib import Path
import pytest, torch

BENCH = Path(__file__).resolve().parent/'bench'; ROOT = BENCH.parent.parent
NAMES = sorted({'rank','tune','pack','memory','gpu'}|{p.stem for p in BENCH.glob('*.py')}-{'common'})

def load(name):
    sys.path.insert(0, str(BENCH))
    try: spec = importlib.util.spec_from_file_location(f'bench_{name}', BENCH/f'{name}.py'); m = importlib.util.module_from_spec(spec); spec.loader.exec_module(m)
    finally: sys.path.remove(str(BENCH))
    return m

@pytest.fixture
def common(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['bench']); m = load('common'); yield m

# --- every script ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', NAMES)
def test_a_bench_ends_with_one_line_of_json(name, common):
    if not (BENCH/f'{name}.py').exists(): pytest.skip(f'tests/bench/{name}.py is not written yet')
    files = {p: p.read_bytes() for p in BENCH.iterdir() if p.suffix in ('.csv','.json')}
    r = subprocess.run([sys.executable, f'tests/bench/{name}.py', '--small', '--no-record', '--threads', '1'], cwd=ROOT, capture_output=True, text=True, timeout=180, env=os.environ|dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES=''))
    assert r.returncode==0, r.stderr[-2000:]
    line = json.loads(r.stdout.strip().splitlines()[-1])
    assert line.keys()>=set(common.KEYS) and line['bench']==name
    assert line['small'] is True and line['met'] is None   # a self-test judges nothing
    assert line['goal'] is None or line['goal']>0
    assert line['ratio'] is None or line['ratio']>0
    assert {p: p.read_bytes() for p in BENCH.iterdir() if p.suffix in ('.csv','.json')}==files, 'a self-test must not write'

# --- the harness -----------------------------------------------------------------------------------------------------
def test_turns_alternate_and_swap(common):
    seen = []; a,b = common.interleave(lambda: seen.append('a'), lambda: seen.append('b'), repeats=3, warmup=1)
    assert ''.join(seen)=='ab'+'ab'+'ba'+'ab' and len(a)==len(b)==3

def test_ratio_is_the_median_over_pairs(common):
    r,spread = common.ratio_of([1.,1.,2.,1.,1.], [2.,2.,4.,2.,20.]); assert r==2. and spread==0.
    assert common.middle([1.,2.])==(1.5,.5) and common.middle([3.])==(3.,0.)
    with pytest.raises(ValueError): common.ratio_of([1.], [1.,2.])

def test_report_ends_in_json_and_appends_a_row(common, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, 'record', lambda line, _old=common.record: _old(line, tmp_path/'results.csv'))
    for ratio in (2.,.5): common.report('demo', ratio, 1.2, seconds=[.123456,torch.tensor(2.)], note='a "quoted", note')
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (line['ratio'], line['met'], line['seconds'], line['small'])==(.5, False, [.1235,2.], False)
    rows = list(csv.DictReader((tmp_path/'results.csv').open()))
    assert list(rows[0])==common.COLUMNS and [float(r['ratio']) for r in rows]==[2.,.5]
    assert json.loads(rows[0]['figures'])['note']=='a "quoted", note' and 'torch' in json.loads(rows[0]['versions'])

def test_the_table_has_a_line_for_every_claim(common, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, 'record', lambda line, _old=common.record: _old(line, tmp_path/'r.csv'))
    common.report('demo', 1., 3, spread=.1); common.report('demo', 3.5, 3, spread=.2, ratio_2_choices=1.5, goal_2_choices=2.); common.report('gpu', None, .5)   # nothing measured, nothing kept
    (tmp_path/'README.md').write_text('before\n<!-- figures -->\nold\n<!-- /figures -->\nafter'); common.write_table(tmp_path/'README.md', tmp_path/'r.csv')
    text = (tmp_path/'README.md').read_text(); lines = [l for l in text.splitlines() if l.startswith('|')][2:]
    assert [[c.strip() for c in l.split('|')[1:5]] for l in lines]==[['demo','3.5 ± 0.2','3','yes'],['demo: 2 choices','1.5','2.0','**no**']]
    assert text.startswith('before') and text.endswith('after') and 'old' not in text

def test_a_goal_met_by_luck_is_not_a_yes(common): assert [common._met(r, 2., s) for r,s in [(1.9,.5),(2.1,.5),(2.1,.05),(2.,0.)]]==['**no**','within the spread','yes','yes']

def test_a_self_test_is_not_recorded(common, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['bench','--small']); monkeypatch.setattr(common, 'record', lambda line: pytest.fail('recorded'))
    assert common.report('demo', 2., 1.2)['met'] is None

def test_hardware_names_no_machine(common):
    import platform
    assert platform.node() not in common.hardware() and 'cores' in common.hardware()

def test_processors_of_one_name_are_told_apart(common, monkeypatch, tmp_path):
    "Two processors are sold as AMD EPYC, and a ratio that one of them gives is not the other's"
    info = 'vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: {}\nmodel name\t: AMD EPYC\n'; seen = []
    for model in (1,17):
        monkeypatch.setattr(common.Path, 'read_text', lambda *a, **k: info.format(model)); common.hardware.cache_clear(); seen.append(common.hardware())
    assert len(set(seen))==2 and 'AMD EPYC (family 25, model 17)' in seen[1] and common.without_family(seen[0])==common.without_family(seen[1])

def test_the_library_of_products_is_recorded(common, monkeypatch):
    from promptbench.model import linear
    monkeypatch.setattr(linear, 'onednn_pays', lambda: True); said = common.products()
    assert said['blas'] and said['linear']=='onednn'
    monkeypatch.setattr(linear, 'onednn_pays', lambda: False); assert common.products()['linear']==said['blas'].split()[0]

def test_a_known_processor_replaces_one_known_by_name_only(common, tmp_path):
    row = dict(bench='demo', goal=2, threads=2, versions={}, figures={}); new = 'AMD EPYC (family 25, model 17), 2 cores'
    for ratio,hardware,linear,date in [(2.5,'AMD EPYC, 2 cores',None,'2026-01-01'), (1.4,new,'mkl','2026-02-01'), (1.9,new,'onednn','2026-02-02'), (1.5,new,'mkl','2026-02-03'), (3.,'Xeon, 2 cores',None,'2026-01-01')]:
        common.record(row|dict(ratio=ratio, hardware=hardware, date=date, threads=1 if linear else 2, versions=dict(linear=linear) if linear else {}), tmp_path/'r.csv')
    lines = common.table(tmp_path/'r.csv').splitlines()[2:]; assert [l.split('|')[2].strip() for l in lines]==['1.5','1.9','3.0'], lines
    assert ['**no**' in l for l in lines]==[True,True,False] and 'products by mkl' in lines[0]

def test_what_is_recorded_reads_back():
    file = BENCH/'results.csv'
    if not file.exists(): pytest.skip('nothing recorded yet')
    for row in csv.DictReader(file.open()): json.loads(row['figures']); json.loads(row['versions']); assert row['bench'] and row['hardware'] and row['date']

# --- counting for the GPU --------------------------------------------------------------------------------------------
SHAPE = dict(vocab=113, dim=24, ff=40, layers=3, heads=2, head_dim=16)   # no two sizes are equal

def small_model(gpu):
    from promptbench.model.backbone import random_backbone
    s = SHAPE; return s,random_backbone(dim=s['dim'], ff=s['ff'], layers=(s['layers'],)*2, heads=s['heads'], head_dim=s['head_dim'])

@pytest.mark.parametrize('prompt', [0,5])
def test_operations_are_those_torch_counts(prompt):
    "Against a T5 of transformers alone, where every product is an ordinary one"
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import T5Config, T5ForConditionalGeneration
    gpu = load('gpu'); s = SHAPE; B,T,U = 3,11,7
    m = T5ForConditionalGeneration(T5Config(vocab_size=s['vocab'], d_model=s['dim'], d_kv=s['head_dim'], d_ff=s['ff'], num_layers=s['layers'], num_heads=s['heads'], feed_forward_proj='gated-gelu', decoder_start_token_id=0, use_cache=False))
    m.set_attn_implementation('eager'); x = torch.cat([torch.randn(B,prompt,s['dim'], requires_grad=True), m.shared(torch.full((B,T), 30))], 1)
    with FlopCounterMode(display=False) as count: m(inputs_embeds=x, labels=torch.full((B,U), 40)).loss.backward()
    assert count.get_total_flops()==gpu.operations(s, [(T,U)]*B, prompt=prompt, dense=True)
    assert gpu.operations(s, [(T,U)])<gpu.operations(s, [(T,U)], dense=True)

def test_parameters_are_those_of_the_models():
    gpu = load('gpu'); s,b = small_model(gpu)
    assert gpu.parameters(s)==sum(p.numel() for p in b.model.parameters())
    for name,million in [('base',247.6),('large',783.2),('xl',2849.8)]: assert abs(gpu.parameters(gpu.SHAPES[name])/1e6-million)<.1, name

def test_a_model_is_built_where_it_will_live():
    "Three billion weights must not be drawn on the CPU first"
    gpu = load('gpu'); b = gpu.build('tiny', 'meta')
    assert {p.device.type for p in b.model.parameters()}=={'meta'}

def test_peaks():
    gpu = load('gpu'); peak = gpu.peak_of
    assert [peak(n) for n in ('NVIDIA H200','NVIDIA H100 80GB HBM3','NVIDIA H100 PCIe','NVIDIA A100-SXM4-80GB','NVIDIA L4','NVIDIA GeForce RTX 4090','NVIDIA L40S','Tesla T4')]==[989,989,756,312,121,165,None,None]
    assert peak('Tesla T4', 65)==65

def test_master_weights_take_the_same_step():
    "In fp32 (no rounding of the low copy) a step over masters is a plain Adafactor step"
    from promptbench.model.batch import make_batch
    from promptbench.train.adafactor import Adafactor
    from promptbench.train.fit import fit, token_nll
    gpu = load('gpu'); s,b = small_model(gpu); c = b.clone(); parts = [make_batch([([20,21,1],[30,1])]), make_batch([([40,1],[50,51,1])])]
    plain = Adafactor(b.model.parameters(), 1e-2, clip=1.); c.model.to = lambda *a: c.model; master = gpu.Master(c.model, 1e-2)
    for backbone,opt in ((b,plain),(c,master)): rows = list(fit([parts]*3, token_nll(backbone), opt))
    for p,q in zip(b.model.parameters(), c.model.parameters()): assert torch.allclose(p, q, atol=1e-6)
    assert all(p.grad is None for p in c.model.parameters())

@pytest.mark.outcome
def test_master_weights_learn_in_bf16():
    from promptbench.model.batch import pack
    from promptbench.train.fit import fit, token_nll
    gpu = load('gpu'); s,b = small_model(gpu); soft = torch.nn.Parameter(torch.zeros(3)); master = gpu.Master(b.model, 1e-2, [soft]); parts = [pack([([20,21,1],[30,1])]), pack([([40,1],[50,51,1])])]
    rows = list(fit([parts]*25, token_nll(b), master)); assert rows[-1]['loss']<rows[0]['loss']/2
    assert all(p.dtype==torch.bfloat16 and torch.equal(p, h.bfloat16()) for p,h in zip(master.low, master.high)) and master.params[-1] is soft

def test_running_out_of_memory_is_survived(monkeypatch, capsys):
    import time
    gpu = load('gpu'); tried = []; v = ('master','auto',False)
    def measure(name, variant, *, budget, **kw):
        tried.append(budget)
        if budget>600: raise torch.OutOfMemoryError('CUDA out of memory')
        return dict(variant=variant, tokens_per_s=1.)
    monkeypatch.setattr(gpu, 'measure', measure)
    assert gpu.surviving('xl', v, 4096, time.monotonic()+99)['tokens_per_s']==1. and tried==[4096,2048,1024,512]
    assert 'memory ran out with 4,096 tokens' in capsys.readouterr().out
    monkeypatch.setattr(gpu, 'measure', lambda *a, **k: 1/0)
    assert 'ZeroDivisionError' in gpu.surviving('xl', v, 4096, time.monotonic()+99)['failed']
    assert gpu.surviving('xl', v, 4096, time.monotonic()-1)['failed']=='no time left'

def test_a_self_test_never_replaces_a_measurement(tmp_path, monkeypatch):
    gpu = load('gpu'); monkeypatch.setattr(gpu, 'RESULTS', tmp_path/'r.json')
    gpu.write(dict(status=gpu.NOT_YET, hardware='cpu')); assert 'not yet measured on GPU' in (tmp_path/'r.json').read_text()
    gpu.write(dict(status='measured', hardware='H200')); gpu.write(dict(status=gpu.NOT_YET, hardware='cpu'))
    assert json.loads((tmp_path/'r.json').read_text())['hardware']=='H200'
