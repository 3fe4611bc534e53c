"What users name is written only where nothing of theirs stands; what they give is read, or refused in one line that says what to do"
import json, shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch
import numpy as np, pandas as pd, pytest, torch
from safetensors.torch import save_file
import promptbench.base.own as own
from promptbench.all import *
from promptbench.base.own import claim, marked, write_out
from promptbench.data.templates import Template, write_templates
from promptbench.model.backbone import random_backbone, save_backbone
from promptbench.prompt.checkpoint import load_state, save_checkpoint
from promptbench.show.assemble import write_figures
from promptbench.show.frame import save_figure
from promptbench.stats.claims import write_claims
from promptbench.stats.results import check_rows, read_predictions, read_rows, to_arrow, write_predictions, write_rows, write_table
from promptbench.stats.store import append, compact

CELL = dict(suite='s', backbone='b', method='m', prompt='deep', shots=4, seed=0, cluster='c', dataset='d', run='r', template='t')

def rows(value=.5, **change): return pd.DataFrame([CELL|dict(metric='accuracy', value=value, n=2, chance=.5, majority=.5)|change])

def predictions(right=1, **change):
    return pd.DataFrame([CELL|change|dict(instance=f'd/{i}', gold=0, pred=int(i>=right), correct=i<right, scores_sum=[0.,-1.], scores_mean=[0.,-.5]) for i in range(2)])

def judged(n=1): return pd.DataFrame([dict(claim='c', verdict='holds', estimate=.1*n, lo=0., hi=1., p=.01)])

def line(n=1):
    import plotly.express as px
    return px.line(x=[1,2], y=[n,3], title='It rises')

WRITERS = {
    'rows.parquet': lambda path, n: write_rows(rows(.5*n), path),
    'predictions.parquet': lambda path, n: write_predictions(predictions(n), path),
    'table.parquet': lambda path, n: write_table(to_arrow(check_rows(rows(.5*n)), 'rows'), path, 'rows'),
    'claims.csv': lambda path, n: write_claims(judged(n), path),
    'templates.yaml': lambda path, n: write_templates([Template(f't{n}', '{{text}} ||| {{answer_choices[label]}}', 'no ||| yes')], path, 'films'),
    'one.html': lambda path, n: save_figure(line(n), path),
    'all.html': lambda path, n: write_figures(dict(a=line(n)), path, title=str(n)),
}

@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('PROMPTBENCH_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'

# --- writing ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', WRITERS)
def test_a_file_of_somebody_else_is_refused_and_our_own_is_written_again(tmp_path, name):
    write = WRITERS[name]; file = tmp_path/name
    first = write(file, 1).read_bytes(); assert write(file, 2).read_bytes()!=first
    file.write_text('my thesis')
    with pytest.raises(UserError, match='remove it first, or name another file'): write(file, 1)
    assert file.read_text()=='my thesis'
    link = tmp_path/f'link-{name}'; link.symlink_to(file)
    with pytest.raises(UserError, match='a plain file'): write(link, 1)

@pytest.mark.parametrize('name', WRITERS)
def test_a_folder_of_ours_is_written_again_wherever_it_is(tmp_path, cache, name):
    "Moved, copied to a machine with another cache, or with a mark that knows nothing yet of a file that was being written"
    write = WRITERS[name]; claim(tmp_path/'out', 'table'); write(tmp_path/'out'/name, 1)
    assert marked(tmp_path/'out')['files']==[name] and not (cache/'written').exists()
    (tmp_path/'out').rename(tmp_path/'moved'); shutil.copytree(tmp_path/'moved', tmp_path/'elsewhere'/'copy'); shutil.rmtree(cache, ignore_errors=True)
    for place in ('moved','elsewhere/copy'): claim(tmp_path/place, 'table'); write(tmp_path/place/name, 2)
    (tmp_path/'moved'/'notes.csv').write_text('mine')
    with pytest.raises(UserError, match='did not write it'): write_out(tmp_path/'moved'/'notes.csv', 'x')

@pytest.mark.parametrize('at', range(1, 5))
def test_killed_between_two_writes(tmp_path, at):
    "The mark first, then the file: whichever write is the last, the same call goes on"
    class Killed(BaseException): pass
    count,really = [0],own.write_atomic
    def dying(*a, **k):
        count[0] += 1
        if count[0]==at: raise Killed
        return really(*a, **k)
    claim(tmp_path/'out', 'table')
    def both(n): write_rows(rows(.5*n), tmp_path/'out'/'rows.parquet'); write_claims(judged(n), tmp_path/'out'/'claims.csv')
    with patch.object(own, 'write_atomic', dying), pytest.raises(Killed): both(1)
    both(2); both(1); assert read_rows(tmp_path/'out').value.tolist()==[.5]

def test_many_programs_in_one_folder_lose_no_name(tmp_path):
    claim(tmp_path/'out', 'table'); names = [f'{i}.csv' for i in range(40)]
    with ThreadPoolExecutor(8) as pool: list(pool.map(lambda n: write_out(tmp_path/'out'/n, n), names))
    assert sorted(marked(tmp_path/'out')['files'])==sorted(names)
    for n in names: write_out(tmp_path/'out'/n, 'again')

def test_a_store_leaves_nothing_in_the_cache(tmp_path, cache):
    for seed in range(3): append(tmp_path/'s', rows(seed=seed), predictions(seed=seed))
    compact(tmp_path/'s'); assert len(read_rows(tmp_path/'s'))==3 and not (cache/'written').exists()

# --- reading ---------------------------------------------------------------------------------------------------------
WORDS = 'good bad film yes no'.split()
DEEP = '['*100_000
BYTES = {'empty': b'', 'text': b'hello', 'nul': bytes(4096), 'zip': b'PK\x03\x04'+bytes(99), 'parquet': b'PAR1'+bytes(64)+b'PAR1', 'number': b'5', 'list': b'[1]', 'object': b'{}',
         'deep': DEEP.encode(), 'latin': 'ß'.encode('latin1'), 'huge length': (2**62).to_bytes(8, 'little')+b'{}', 'null': b'null'}

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "One whole thing of every kind that users give"
    top = tmp_path_factory.mktemp('made'); b = random_backbone(WORDS, seed=1); p = new_prompt('shallow', b, length=3)
    save_backbone(b, top/'backbone'); save_prompt(p, top/'prompt', backbone=b); export_peft(b, p, top/'adapter')
    save_checkpoint(top/'checkpoint', backbone=b, prompt=p, state=dict(step=1, t=torch.ones(2)))
    write_rows(rows(), top/'tables'/'rows.parquet'); write_predictions(predictions(), top/'tables'/'predictions.parquet')
    for seed in range(3): append(top/'store', rows(seed=seed), predictions(seed=seed))
    compact(top/'store')
    append(top/'store', pd.concat([rows(seed=s) for s in (7,8)]), pd.concat([predictions(seed=s) for s in (7,8)]))
    (top/'table').mkdir(); np.save(top/'table'/'p.npy', np.ones((3,4), 'float32')); save_file(dict(a=torch.ones(3,4)), top/'table'/'p.safetensors')
    torch.save(torch.ones(3,4), top/'table'/'p.pt')
    return top

READERS = {
    'tables/rows.parquet': lambda top: read_rows(top/'tables'), 'tables/predictions.parquet': lambda top: read_predictions(top/'tables'),
    'prompt/card.json': lambda top: load_prompt(top/'prompt'), 'prompt/prompt.safetensors': lambda top: load_prompt(top/'prompt'),
    'checkpoint/card.json': lambda top: load_checkpoint(top/'checkpoint'), 'checkpoint/state.json': lambda top: load_state(top/'checkpoint'),
    'checkpoint/backbone/config.json': lambda top: load_checkpoint(top/'checkpoint'), 'checkpoint/state.safetensors': lambda top: load_state(top/'checkpoint'),
    'backbone/config.json': lambda top: load_backbone(top/'backbone'), 'backbone/model.safetensors': lambda top: load_backbone(top/'backbone'),
    'backbone/tokenizer.json': lambda top: load_backbone(top/'backbone'),
    'adapter/adapter_config.json': lambda top: import_peft(top/'adapter'), 'adapter/adapter_model.safetensors': lambda top: import_peft(top/'adapter'),
    'table/p.npy': lambda top: import_table(top/'table'/'p.npy'), 'table/p.safetensors': lambda top: import_table(top/'table'/'p.safetensors'), 'table/p.pt': lambda top: import_table(top/'table'/'p.pt'),
    'store/*/rows.parquet': lambda top: read_rows(top/'store'), 'store/compact-*/replaces.json': lambda top: read_rows(top/'store'),
    'store/many-*/views.json': lambda top: append(top/'store', rows(seed=7, value=0.), predictions(0, seed=7)),
}

def one_line(e:UserError)->str:
    text = str(e.value); assert text and '\n' not in text and len(text)<1200, text
    return text

@pytest.mark.parametrize('how', [*BYTES, 'a folder', 'half'])
@pytest.mark.parametrize('name', READERS)
def test_a_damaged_file_is_one_line(made, tmp_path, name, how):
    top = Path(shutil.copytree(made, tmp_path/'made')); file = next(top.glob(name)); data = file.read_bytes()
    READERS[name](top) if 'views' not in name else None
    file.unlink(); file.mkdir() if how=='a folder' else file.write_bytes(data[:len(data)//2] if how=='half' else BYTES[how])
    with pytest.raises(UserError) as e: READERS[name](top)
    one_line(e)

ODD = {
    'whole numbers': dict(prompt_embeddings=torch.ones(3, 64, dtype=torch.long)), 'no positions': dict(prompt_embeddings=torch.ones(0, 64)), 'one axis': dict(prompt_embeddings=torch.ones(64)),
    'another name': dict(weights=torch.ones(3, 64)), 'not finite': dict(prompt_embeddings=torch.full((3, 64), torch.nan)),
    'too many': dict(prompt_embeddings=torch.ones(5, 64))}

@pytest.mark.parametrize('name', ODD)
def test_an_adapter_of_odd_tensors(made, tmp_path, name):
    top = Path(shutil.copytree(made/'adapter', tmp_path/'a')); save_file(ODD[name], top/'adapter_model.safetensors')
    with pytest.raises(UserError) as e: import_peft(top)
    one_line(e)

@pytest.mark.parametrize('change', [dict(num_transformer_submodules='two'), dict(num_transformer_submodules=[1]), dict(num_virtual_tokens=True), dict(num_virtual_tokens='3'),
                                    dict(peft_type=['PROMPT_TUNING']), dict(peft_type='MULTITASK_PROMPT_TUNING')])
def test_an_adapter_of_odd_words(made, tmp_path, change):
    top = Path(shutil.copytree(made/'adapter', tmp_path/'a')); file = top/'adapter_config.json'; file.write_text(json.dumps(json.loads(file.read_text())|change))
    with pytest.raises(UserError) as e: import_peft(top)
    one_line(e)

def test_masks_that_do_not_fit(made, tmp_path):
    top = Path(shutil.copytree(made/'adapter', tmp_path/'a')); file = top/'adapter_config.json'; file.write_text(json.dumps(json.loads(file.read_text())|dict(peft_type='MULTITASK_PROMPT_TUNING')))
    for cols,table in [((1,3,1),(1,1,5)), ((1,2,1),(1,1,64)), ((3,1),(1,1,64)), ((2,3,1),(1,1,64))]:
        width = load_prompt(made/'prompt').table.shape[2]; save_file(dict(prompt_embeddings=torch.ones(3, width), prefix_task_cols=torch.ones(cols), prefix_task_rows=torch.ones(table)), top/'adapter_model.safetensors')
        with pytest.raises(UserError, match='must fit 3 positions'): import_peft(top)

@pytest.mark.parametrize('kept', [5, 'yes', [True], [1,2], {'a': 1}])
def test_a_backbone_whose_ends_are_no_truth_values(made, tmp_path, kept):
    top = Path(shutil.copytree(made/'backbone', tmp_path/'b')); file = top/'config.json'; file.write_text(json.dumps(json.loads(file.read_text())|dict(promptbench_eos=kept)))
    with pytest.raises(UserError, match='two of true, false and null'): load_backbone(top)

@pytest.mark.parametrize('name', ['a\0b', 'x'*5000])
@pytest.mark.parametrize('read', [read_rows, read_predictions, load_backbone, load_checkpoint, load_prompt, import_peft, import_table])
def test_a_name_that_cannot_be(read, name):
    with pytest.raises(UserError) as e: read(name)
    assert '\n' not in str(e.value)

# --- the command line ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('port', [0, -1, 65536, 10**6])
def test_a_port_that_is_none_is_refused_before_anything_is_copied(tmp_path, monkeypatch, capsys, port):
    from promptbench.cli.main import main
    monkeypatch.chdir(tmp_path); monkeypatch.setattr('sys.argv', ['promptbench','lab','--folder',str(tmp_path/'mine'),f'--port={port}'])
    with pytest.raises(SystemExit) as e: main()
    assert e.value.code==2 and not (tmp_path/'mine').exists()
    assert f'--port must be a whole number at least 1 and at most 65,535, got {port}' in capsys.readouterr().err

def test_the_readme_tells_every_exit_code():
    from promptbench.base.mend import EXITS
    line, = [l for l in (Path(__file__).resolve().parents[1]/'README.md').read_text(encoding='utf8').splitlines() if 'exit code: 0' in l]
    for code in EXITS: assert f' {code} ' in line, code
