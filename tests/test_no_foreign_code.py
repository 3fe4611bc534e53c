"Python files that lie beside weights, tokenizers and data are never run, and nobody is asked whether they may be"
import json, os, shutil, subprocess, sys
from pathlib import Path
import pytest
from promptbench.base.core import UserError, data_dir

EVIL = 'open(__file__+".ran", "w").close()\nclass Evil: pass\ndef generate(*a, **k): pass\n'
REMOTE = dict(AutoConfig='evil.Evil', AutoModel='evil.Evil', AutoModelForCausalLM='evil.Evil', AutoModelForSeq2SeqLM='evil.Evil',
              AutoTokenizer=['evil.Evil','evil.Evil'], AutoProcessor='evil.Evil', AutoImageProcessor='evil.Evil')
FILES = ('config.json', 'tokenizer_config.json', 'processor_config.json', 'preprocessor_config.json', 'generation_config.json')

def planted(folder, model_type=None):
    "A copy of the tiny backbone in which every file that may name code names some; `model_type`: one that nobody knows"
    shutil.copytree(data_dir('backbones','tiny'), folder)
    (folder/'evil.py').write_text(EVIL)
    for sub in ('custom_generate', 'additional_chat_templates'):
        (folder/sub).mkdir()
        (folder/sub/'generate.py').write_text(EVIL)
    for name in FILES:
        file = folder/name
        told = json.loads(file.read_text()) if file.exists() else {}
        told |= dict(auto_map=REMOTE, custom_generate='evil.generate', processor_class='Evil')
        if name=='tokenizer_config.json': told['tokenizer_class'] = 'Evil'
        if model_type and name=='config.json': told |= dict(model_type=model_type, architectures=['Evil'])
        file.write_text(json.dumps(told))
    return folder

def nothing_ran(folder): return not [p for p in Path(folder).rglob('*.ran')]

@pytest.fixture(params=[None, 'evil'], ids=['known model', 'unknown model'])
def place(request, tmp_path, monkeypatch):
    def asks(*_): raise AssertionError('a question on standard input')
    monkeypatch.setattr('builtins.input', asks)
    monkeypatch.setattr('sys.stdin', None)
    return planted(tmp_path/'m', request.param)

def loads(place):
    from promptbench.data.checks import token_counter
    from promptbench.model.backbone import load_backbone
    from promptbench.prompt.checkpoint import load_checkpoint
    from promptbench.prompt.peft import import_peft
    yield lambda: load_backbone(place, device='cpu')
    yield lambda: load_checkpoint(place, device='cpu')
    yield lambda: import_peft(place)
    yield lambda: token_counter(str(place))(['a'])
    (place/'tokenizer.json').unlink()
    yield lambda: token_counter(str(place))(['a'])
    yield lambda: load_backbone(place, device='cpu')

def test_no_loader_runs_what_lies_beside_the_weights(place):
    for load in loads(place):
        try: load()
        except UserError: pass
        assert nothing_ran(place)

def test_a_checkpoint_with_code_beside_its_backbone(place, tmp_path):
    from promptbench.model.backbone import load_backbone
    from promptbench.prompt.checkpoint import load_checkpoint, save_checkpoint
    save_checkpoint(tmp_path/'c', backbone=load_backbone('tiny', device='cpu'))
    for file in place.iterdir():
        if file.suffix in ('.py','.json') and file.name!='card.json': shutil.copy(file, tmp_path/'c'/'backbone')
    try: load_checkpoint(tmp_path/'c', device='cpu')
    except UserError: pass
    assert nothing_ran(tmp_path)

@pytest.mark.parametrize('model_type', [None, 'evil'])
def test_no_command_asks_or_runs(tmp_path, model_type):
    "As a user would be asked: standard input says yes to everything"
    folder = planted(tmp_path/'m', model_type)
    (folder/'tokenizer.json').unlink()
    commands = [['evaluate','--quick','--backbone',folder], ['show','microworld','entail','--tokenizer',folder]]
    for command in commands:
        done = subprocess.run([sys.executable,'-m','promptbench',*map(str, command)], input='y\n'*50, capture_output=True, text=True,
                              cwd=tmp_path, env=dict(os.environ, HF_HOME=str(tmp_path/'hf'), PROMPTBENCH_CACHE=str(tmp_path/'cache')))
        assert 'Traceback' not in done.stderr and '[y/N]' not in done.stdout+done.stderr, done.stderr[-500:]
    assert nothing_ran(tmp_path)

def test_a_dataset_with_a_script_is_data_only(tmp_path):
    from promptbench.data.tables import load_rows
    (tmp_path/'d').mkdir()
    (tmp_path/'d'/'d.py').write_text(EVIL)
    (tmp_path/'d'/'train.jsonl').write_text('{"text": "a"}\n')
    try: load_rows(str(tmp_path/'d'), split='train', cache_dir=str(tmp_path/'c'))
    except UserError: pass
    assert nothing_ran(tmp_path)

def test_the_plant_would_work(tmp_path):
    "The guard can fail: asked to trust it, transformers runs the planted file"
    folder = planted(tmp_path/'m', 'evil')
    code = 'import sys, transformers; transformers.AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)'
    env = dict(os.environ, HF_MODULES_CACHE=str(tmp_path/'modules'), HF_HOME=str(tmp_path/'hf'))
    subprocess.run([sys.executable,'-c',code,str(folder)], env=env, capture_output=True)
    assert not nothing_ran(tmp_path)
