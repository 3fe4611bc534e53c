"Checkpoints: what goes in comes out, damage is named, and a run goes on as if nothing had happened"
import json, shutil, signal, pytest, torch
from dataclasses import replace
from itertools import cycle, islice
from promptbench import __version__
from promptbench.base.core import UserError
from promptbench.base.own import MARK
from promptbench.model.backbone import random_backbone, weight_hashes
from promptbench.prompt.forward import forward
from promptbench.model.batch import make_batch
from promptbench.prompt.checkpoint import last_step, load_checkpoint, load_state, read_card, restore, save_checkpoint, save_step
from promptbench.train.adafactor import Adafactor
from promptbench.train.fit import fit, token_nll, training
from promptbench.prompt.inits import new_prompt
from promptbench.train.meta import meta_train
from promptbench.train.pretrain import pretrain
from promptbench.prompt.bank import NoPrompt
from promptbench.base.stop import Stopped, stoppable
from promptbench.train.tune import tune

@pytest.fixture(scope='module')
def backbone(): return random_backbone(seed=1)
BATCHES = [make_batch([([20+i,30+j,1],[40+(i+j)%5,1]) for j in range(4)]) for i in range(10)]

@pytest.mark.parametrize('kind', ['none','shallow','deep'])
def test_round_trip(backbone, tmp_path, kind):
    prompt = new_prompt(kind, backbone, length=4, n=1 if kind=='none' else 3, seed=2)
    save_checkpoint(tmp_path/'a', backbone=backbone, prompt=prompt, card=dict(method='T+P', config=dict(lr=1e-3), parent='tiny', backbone='tiny', prompt=kind))
    b,p,card = load_checkpoint(tmp_path/'a')
    assert weight_hashes(b)==weight_hashes(backbone) and p.kind==kind and len(p)==len(prompt)
    assert torch.equal(forward(b, BATCHES[0], p), forward(backbone, BATCHES[0], prompt))
    assert (card['method'], card['config'], card['parent'], card['version'], card['backbone'])==('T+P', dict(lr=1e-3), 'tiny', __version__, 'tiny')

def test_parts_are_optional(backbone, tmp_path):
    save_checkpoint(tmp_path/'p', prompt=new_prompt('deep', backbone, length=2)); b,p,_ = load_checkpoint(tmp_path/'p'); assert b is None and len(p)==1
    save_checkpoint(tmp_path/'b', backbone=backbone); b,p,_ = load_checkpoint(tmp_path/'b'); assert p is None and b.vocab==backbone.vocab
    save_checkpoint(tmp_path/'n'); assert load_checkpoint(tmp_path/'n')[:2]==(None,None) and load_state(tmp_path/'n')=={}

def test_reference_moves_with_its_parent(backbone, tmp_path):
    save_checkpoint(tmp_path/'x'/'full', backbone=backbone)
    save_checkpoint(tmp_path/'x'/'light', backbone=backbone, reference=tmp_path/'x'/'full', prompt=new_prompt('shallow', backbone, length=2))
    assert not list((tmp_path/'x'/'light').rglob('model.safetensors'))
    (tmp_path/'x').rename(tmp_path/'y'); b,p,_ = load_checkpoint(tmp_path/'y'/'light'); assert weight_hashes(b)==weight_hashes(backbone)
    save_checkpoint(tmp_path/'y'/'full', backbone=random_backbone(seed=9))
    with pytest.raises(UserError, match='made for another backbone'): load_checkpoint(tmp_path/'y'/'light')
    shutil.rmtree(tmp_path/'y'/'full')
    with pytest.raises(UserError, match='no such folder; put .* back'): load_checkpoint(tmp_path/'y'/'light')

def full(backbone, folder):
    prompt = new_prompt('shallow', backbone, length=2); opt = Adafactor(prompt.parameters(), .1)
    for p in prompt.parameters(): p.grad = torch.ones_like(p)
    opt.step(); return save_checkpoint(folder, backbone=backbone, prompt=prompt, optimizer=opt, state=dict(step=1, noise=torch.rand(3)), card=dict(method='T+P'))

def test_every_flipped_bit_is_named(backbone, tmp_path):
    full(backbone, tmp_path/'a'); names = sorted(str(p.relative_to(tmp_path/'a')) for p in (tmp_path/'a').rglob('*') if p.is_file() and p.name!=MARK)
    assert {'card.json','prompt.safetensors','optimizer.safetensors','state.json','state.safetensors','backbone/model.safetensors','backbone/tokenizer.json'}<=set(names)
    for name in names:
        file = tmp_path/'a'/name; data = file.read_bytes()
        for at in (0, len(data)//2, len(data)-1):
            bad = bytearray(data); bad[at] ^= 1; file.write_bytes(bad)
            with pytest.raises(UserError, match=f'{name.split("/")[-1]} is damaged'): load_checkpoint(tmp_path/'a')
        file.unlink()
        with pytest.raises(UserError, match=name.split('/')[-1] if name!='card.json' else 'no card.json'): load_checkpoint(tmp_path/'a')
        file.write_bytes(data)
    load_checkpoint(tmp_path/'a')

def test_edited_card_is_refused(backbone, tmp_path):
    full(backbone, tmp_path/'a'); file = tmp_path/'a'/'card.json'; card = json.loads(file.read_text()); card['method'] = 'T-only'; file.write_text(json.dumps(card))
    with pytest.raises(UserError, match='edited by hand'): read_card(tmp_path/'a')
    file.write_text('[1]')
    with pytest.raises(UserError, match='damaged'): read_card(tmp_path/'a')

def test_not_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match='no such folder'): load_checkpoint(tmp_path/'a')
    with pytest.raises(UserError, match='has no card.json'): load_checkpoint(tmp_path)
    (tmp_path/'f').write_text('x')
    with pytest.raises(UserError, match='a file is in the way'): save_checkpoint(tmp_path/'f'/'a')
    with pytest.raises(UserError, match=r"names \['version'\]"): save_checkpoint(tmp_path/'a', card=dict(version=2))

def test_failed_save_leaves_the_old_one(backbone, tmp_path):
    full(backbone, tmp_path/'a')
    with pytest.raises(TypeError): save_checkpoint(tmp_path/'a', backbone=backbone, state=dict(bad=object()))
    assert read_card(tmp_path/'a')['method']=='T+P' and [p.name for p in tmp_path.iterdir()]==['a']

def make(train, kind):
    b = random_backbone(seed=4); b.model.requires_grad_(train); prompt = new_prompt(kind, b, length=3, seed=0)
    groups = ([dict(params=b.model.parameters())] if train else [])+([dict(params=prompt.parameters(), lr=.1)] if kind!='none' else [])
    return b,prompt,Adafactor(groups, .01, clip=1.)

def run(parts, batches, start=0):
    b,prompt,opt = parts
    with training(b.model, .2): return [r['loss'] for r in fit(batches, token_nll(b, prompt), opt, seed=5, start=start)]

@pytest.mark.parametrize('train,kind', [(True,'none'), (False,'shallow'), (False,'deep'), (True,'shallow'), (True,'deep')])
def test_five_save_load_five_is_ten(tmp_path, train, kind):
    straight = make(train, kind); want = run(straight, BATCHES)
    first = make(train, kind); got = run(first, BATCHES[:5])
    save_checkpoint(tmp_path/'a', backbone=first[0], prompt=first[1], optimizer=first[2], state=dict(step=5, losses=got))
    second = make(train, kind); state = restore(tmp_path/'a', backbone=second[0], prompt=second[1], optimizer=second[2])
    assert state['losses']==got
    assert got+run(second, BATCHES[5:], state['step'])==want
    assert weight_hashes(second[0])==weight_hashes(straight[0]) and all(torch.equal(x,y) for x,y in zip(second[1].parameters(), straight[1].parameters()))

def test_restore_refuses_what_does_not_fit(backbone, tmp_path):
    full(backbone, tmp_path/'a')
    with pytest.raises(UserError, match='table_NPD .* does not fit'): restore(tmp_path/'a', prompt=new_prompt('shallow', backbone, length=9))
    with pytest.raises(UserError, match='does not fit'): restore(tmp_path/'a', backbone=random_backbone(seed=1, dim=16))
    save_checkpoint(tmp_path/'r', backbone=backbone, reference='random')
    with pytest.raises(UserError, match='another backbone'): restore(tmp_path/'r', backbone=random_backbone(seed=8))

def test_rotation_and_fallback(tmp_path):
    assert last_step(tmp_path/'run') is None
    for k in range(1,5): save_step(tmp_path/'run', k*10, keep=2, state=dict(k=k))
    assert [p.name for p in sorted((tmp_path/'run').iterdir())]==['step-00000030','step-00000040'] and load_state(last_step(tmp_path/'run'))=={'k':4}
    (tmp_path/'run'/'step-00000040'/'state.json').write_text('{"k": 5}'); (tmp_path/'run'/'.step-00000050.xyz').mkdir()
    with pytest.warns(UserWarning, match='state.json is damaged'): assert load_state(last_step(tmp_path/'run'))=={'k':3}

# --- every loop: asked to stop, damaged, gone on ---------------------------------------------------------------------
def mtl(folder=None, every=100):
    from test_pretrain import cell, suite
    b,p,config = cell('T+P','deep'); return pretrain(b, p, suite().tasks('train'), config, folder=folder, every=every),[b.model,p]

def meta(method):
    def make(folder=None, every=100):
        from meta_cell import cell, suite
        b,p,config = cell(method, 'shallow', updates=8, dropout=.1); return meta_train(b, p, suite().tasks('train'), config, folder=folder, every=every),[b.model,p]
    return make

def bank(folder=None, every=100):
    from test_tune import CONFIG, TASKS, WORDS
    run = tune(random_backbone(WORDS, seed=3), 'deep', TASKS[:4], replace(CONFIG, steps=10, dropout=.1), folder=folder, every=every); return run,run

LOOPS = dict(mtl=mtl, fomaml=meta('fomaml'), reptile=meta('reptile'), tune=bank)

def end(what): return [p.detach().clone() for x in ([what.bank] if hasattr(what, 'bank') else what) for p in x.parameters()]

@pytest.mark.parametrize('name', LOOPS)
def test_a_loop_stops_after_a_checkpoint_and_goes_on_with_the_same_numbers(name, tmp_path):
    make = LOOPS[name]; rows,what = make(); want = [r['loss'] for r in rows]; weights = end(what)
    def part(stop):
        rows,what = make(tmp_path, every=2); got = []
        try:
            with stoppable():
                for r in rows:
                    got.append(r['loss'])
                    if len(got)==stop: signal.raise_signal(signal.SIGTERM)
        except Stopped as e: assert 'goes on' in str(e); return got,None
        return got,end(what)
    got,w = part(3); assert w is None and got==want[:4] and last_step(tmp_path).name=='step-00000004', 'one step after the signal, with a checkpoint off the beat'
    got,w = part(6); assert w is None and got==want[:7] and [p.name for p in sorted(tmp_path.iterdir())]==['step-00000006','step-00000007']
    file = next(f for f in sorted((tmp_path/'step-00000007').rglob('*.safetensors'))); data = bytearray(file.read_bytes()); data[-9] ^= 2; file.write_bytes(data)
    with pytest.warns(UserWarning, match='damaged'): got,w = part(None)
    assert got==want and all(torch.equal(x, y) for x,y in zip(w, weights)), 'not the numbers of the run that nobody touched'

def test_a_loop_without_a_folder_stops_too():
    rows,_ = mtl(); got = []
    with stoppable(), pytest.raises(Stopped, match='begins anew'):
        for r in rows: got.append(r); signal.raise_signal(signal.SIGTERM) if len(got)==2 else None
    assert len(got)==3

def test_the_language_model_goes_on_with_the_same_numbers(tmp_path):
    from promptbench.world.backbone import LMConfig, make_backbone
    config = LMConfig(d_model=32, d_ff=64, heads=2, encoder_layers=1, decoder_layers=1, prose_steps=16, prose_batch=8, skill_steps=24, skill_batch=8, rest_batch=4, precision='fp32')
    def make(out, stop=None, **more):
        def watch(rows, total, name):
            for i,r in enumerate(rows):
                if i==stop: signal.raise_signal(signal.SIGTERM)
                yield r
        with stoppable(): return make_backbone(tmp_path/out, config, watch=watch, **more)
    whole = make('a')
    for stop in (3, 9):
        with pytest.raises(Stopped): make('b', stop, every=8)
    steps = sorted((tmp_path/'b.state').iterdir()); assert [s.name for s in steps]==['step-00000016','step-00000024']
    file = steps[-1]/'state.safetensors'; data = bytearray(file.read_bytes()); data[len(data)//2] ^= 1; file.write_bytes(data)
    with pytest.warns(UserWarning, match='state.safetensors is damaged'): again = make('b', every=8)
    assert (again/'model.safetensors').read_bytes()==(whole/'model.safetensors').read_bytes() and (again/'training_log.json').read_text()==(whole/'training_log.json').read_text()
    assert not (tmp_path/'b.state').exists()
    with pytest.raises(Stopped): make('c', 3)
    (tmp_path/'c.state').rename(tmp_path/'d.state'); config = replace(config, seed=1)
    with pytest.raises(UserError, match='another run'): make('d')

def test_all_processes_agree_to_stop(monkeypatch):
    import promptbench.prompt.checkpoint as C
    from promptbench.model.ranks import Ranks
    monkeypatch.setattr(C, 'ranks', lambda: Ranks(rank=1, size=2)); monkeypatch.setattr(C, 'stop_asked', lambda: False)
    monkeypatch.setattr(C, 'sum_over', lambda ts: [t.add_(1) for t in ts]); assert C.stopping() is True # somebody else was asked
    monkeypatch.setattr(C, 'sum_over', lambda ts: None); assert C.stopping() is False
