"The command line as a person types it: what it prints, what it refuses, how it exits"
import json, os, re, subprocess, sys
from pathlib import Path
import pandas as pd, pytest
import promptbench

def call(*args, cwd=None, **env):
    return subprocess.run([sys.executable,'-m','promptbench.cli.main',*map(str,args)], capture_output=True, text=True, cwd=cwd, env=dict(os.environ, HF_HUB_OFFLINE='1', **env))

def refused(r, *words):
    assert r.returncode==2, (r.returncode, r.stdout, r.stderr)
    assert 'Traceback' not in r.stderr and r.stderr.count('promptbench:')==1, r.stderr
    for w in words: assert w in r.stderr, r.stderr

def test_version():
    r = call('--version'); assert (r.returncode, r.stdout, r.stderr)==(0, f'promptbench {promptbench.__version__}\n', '')

def test_help_has_examples():
    out = call('--help').stdout
    for c in ('table1','evaluate','results','arg','show','run','doctor'): assert c in out
    for c in ('table1','evaluate','results','arg','show','run'): assert 'Examples:' in call(c, '--help').stdout

def test_doctor_says_what_works():
    r = call('doctor', '--quick'); assert r.returncode==0, r.stderr
    for w in ('python','torch','GPU','hub','Chromium','disk','tiny backbone'): assert w in r.stdout
    assert 'examples/s' not in r.stdout

def doctor(*args):
    from typer.testing import CliRunner
    from promptbench.cli.main import app
    return CliRunner().invoke(app, ['doctor', *args])

def test_doctor_tries_every_device(monkeypatch):
    from promptbench.lab import health
    seen = []; monkeypatch.setattr(health, 'health', lambda: [('python', True, '3')])
    real = health.reached; monkeypatch.setattr(health, 'reached', lambda device, seconds: seen.append(seconds) or real(device, .1))
    r = doctor(); assert r.exit_code==0 and seen==[5.]*len(seen) and len(seen)>=1
    line = next(l for l in r.stdout.splitlines() if l.startswith('ok  cpu ')); assert re.search(r'CPU, \d+ cores.*: [\d,]+ examples/s, [\d,]+ tokens/s, [\d.e-]+ TFLOP/s in (fp32|bf16) ', line), line
    assert doctor('--device', 'cpu').stdout.count('examples/s')==1

def test_doctor_says_which_device_fails(monkeypatch):
    import torch
    from promptbench.lab import health
    def fail(device, seconds): raise RuntimeError('no kernel image is available\nand more')
    monkeypatch.setattr(health, 'health', lambda: []); monkeypatch.setattr(health, 'reached', fail)
    r = doctor(); assert 'BAD cpu' in r.stdout and 'no kernel image is available' in r.stdout and 'and more' not in r.stdout and 'cpu' in str(r.exception)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True); monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(health, 'reached', lambda device, seconds: fail(device, seconds) if device!='cpu' else dict(device='a CPU', examples_s=1., tokens_s=1., tflops=1., precision='fp32', library='BLAS', memory=1))
    r = doctor(); assert r.exit_code==0 and '--  cuda:0' in r.stdout and 'ok  cpu' in r.stdout     # found, and the rest works
    r = doctor('--device', 'cuda'); assert r.exit_code and 'BAD cuda:0' in r.stdout               # asked for, and does not

def test_a_device_that_is_not_there_is_refused():
    refused(call('doctor', '--device', 'cuda:77'), 'cuda:77', 'must be on this machine')
    refused(call('doctor', '--device', 'gpu'), 'device must be auto, cpu, cuda', "'gpu'")
    refused(call('evaluate', '--quick', '--device', 'cuda:77'), 'cuda:77', 'must be on this machine')

BAD = {
    'missing suite': (['--suite','nowhere/at/all'], ['nowhere/at/all','microworld']),
    'unknown method': (['--methods','none,T0'], ["method must be one of", "'T0'"]),
    'too many shots': (['--shots','0,1000'], ['1000 training examples','only 64']),
    'wrong hub id': (['--backbone','google/no-such-t5'], ['google/no-such-t5']),
    'no numbers': (['--shots','few'], ['shots','few']),
    'no seeds': (['--seeds','0'], ['seeds']),
    'unknown scale': (['--scale','huge'], ['scale must be one of']),
    'no workers': (['--workers','0'], ['--workers must be a whole number at least 1']),
}

@pytest.mark.parametrize('name', BAD)
def test_table1_refuses_before_it_writes(name, tmp_path):
    args,words = BAD[name]; out = tmp_path/'out'
    refused(call('table1', *args, '--out', out), *words); assert not out.exists(), list(out.rglob('*'))

def test_templates_without_choices_are_refused(tmp_path):
    d = tmp_path/'suite'/'nli'/'mine'; d.mkdir(parents=True)
    for split in ('train','validation'): (d/f'{split}.jsonl').write_text('\n'.join(json.dumps(dict(a=f'text {i}', label=i%2)) for i in range(20)))
    (d/'templates.yaml').write_text('dataset: mine\ntemplates:\n  x: !Template\n    answer_choices: null\n    jinja: "{{a}} ||| {{label}}"\n    name: free\n    metadata: !TemplateMetadata\n      original_task: true\n')
    refused(call('evaluate','--suite',tmp_path/'suite'), 'free', 'answer_choices')

def test_out_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('x')
    refused(call('table1','--quick','--out',tmp_path/'file'/'out'), 'a file is in the way')
    refused(call('evaluate','--quick','--out',tmp_path/'file'/'out'), 'a file is in the way')

def test_show(tmp_path):
    assert 'sense' in call('show').stdout
    assert '* ' in call('show','microworld','entail/claim').stdout
    refused(call('show','microworld','entail/nothing'), 'task must be one of')

def test_evaluate_writes_tables(tmp_path):
    r = call('evaluate','--quick','--n-eval','4','--out',tmp_path/'e'); assert r.returncode==0, r.stderr
    assert 'majority' in r.stdout and 'entail' in r.stdout
    from promptbench.stats.results import read_predictions, read_rows
    assert len(read_rows(tmp_path/'e'))==9 and len(read_predictions(tmp_path/'e'))==36

def test_evaluate_tells_of_both_kinds_of_answers(tmp_path):
    r = call('evaluate','--role','all','--quick','--n-eval','3','--limit','8','--shots','2','--max-new','6','--out',tmp_path/'e'); assert r.returncode==0, r.stderr
    from promptbench.stats.results import read_predictions, read_rows
    rows,p = read_rows(tmp_path/'e'),read_predictions(tmp_path/'e'); tasks = rows[['dataset','template']].drop_duplicates()
    assert len(tasks)==8 and rows.cluster.nunique()==8 and len(p)==24 and {'accuracy','exact_match','f1'}<=set(rows.metric) and set(rows.shots)=={2} and set(rows.prompt)=={'context'} and set(rows.method)=={'in context'}
    for m in set(rows.metric): assert f' {m} ' in r.stdout
    head,*table,last = r.stdout[r.stdout.index('cluster'):].splitlines(); assert head.split()[2:4]==['metric','templates'] and 'value' in head and 'accuracy' not in head
    table,last = table[:-1],table[-1] if last.startswith('written') else last
    assert len(table)==rows.groupby(['dataset','metric']).ngroups and re.fullmatch(r'8 tasks of 8 datasets, 24 instances, \d+ s; [+-][\d.]+ over chance in the mean of \d datasets with choices', last), last
    assert '2 solved examples before every question' in r.stdout and '  | ' in r.stdout and 'judging: 100%' in r.stderr

def test_names_of_runs_change_with_what_is_asked(tmp_path):
    "Each way has rows of its own name; asked again they are those of before"
    from promptbench.stats.results import read_rows
    ways = [[], ['--limit','2'], ['--shots','1'], ['--answers','choices'], ['--max-new','8'], ['--limit','2','--seed','1']]; names = []
    from typer.testing import CliRunner
    from promptbench.cli.main import app
    for i,way in enumerate([*ways, []]):
        r = CliRunner().invoke(app, ['evaluate','--quick','--n-eval','2','--role','dev',*way,'--out',str(tmp_path/str(i))]); assert r.exit_code==0, r.exception
        names += set(read_rows(tmp_path/str(i)).run)
    assert len(set(names))==len(ways) and names[0]==names[-1]

def test_chat_is_said_in_rows(tmp_path):
    from test_chat import toy
    from typer.testing import CliRunner
    from promptbench.cli.main import app
    from promptbench.model.backbone import save_backbone
    from promptbench.stats.results import read_rows
    save_backbone(toy('system'), tmp_path/'b'); names = []
    for chat in ([], ['--chat']):
        r = CliRunner().invoke(app, ['evaluate','--backbone',str(tmp_path/'b'),'--quick','--n-eval','2','--limit','3',*chat,'--out',str(tmp_path/f'e{len(chat)}')]); assert r.exit_code==0, r.exception
        rows = read_rows(tmp_path/f'e{len(chat)}'); names.append((set(rows.run), set(rows.backbone)))
    assert names[0][0]!=names[1][0] and [n[1] for n in names]==[{str(tmp_path/'b')}, {f"{tmp_path/'b'} (chat)"}]
    refused(call('evaluate','--chat','--quick'), 'encoder-decoder', 'leave chat out')

def test_a_store_is_filled_and_asked(tmp_path):
    args = ['evaluate','--quick','--n-eval','4','--store',tmp_path/'s']
    r = call(*args); assert r.returncode==0 and 'appended to' in r.stdout, r.stderr
    assert 'holds these results already' in call(*args).stdout
    r = call('results', tmp_path/'**'); assert r.returncode==0, r.stderr
    for w in ('microworld','seeds','majority','36'): assert w in r.stdout
    r = call('results', tmp_path/'s', '--sql', 'select dataset, count(*) as asked from predictions group by 1 order by 1', '--to', tmp_path/'d.csv'); assert r.returncode==0, r.stderr
    assert set(pd.read_csv(tmp_path/'d.csv').asked)=={4}
    refused(call('results', tmp_path/'s', '--sql', 'select accuracy from rows'), 'accuracy', 'rows(suite, backbone')
    refused(call('results', tmp_path/'nowhere/**'), 'no rows at', 'nowhere')

PAPER = Path(__file__).resolve().parent.parent/'data'/'paper'/'promptability_xl_deep_16shot_per_template.csv'

@pytest.mark.parametrize('by,want', [('macro9',('42.91','43.19')), ('datasets',('36.98','37.62')), ('templates',('38.70','39.36'))])
def test_arg_of_the_released_scores(by, want):
    r = call('arg', PAPER, '--by', by, '--columns', 'template=inferred_task_name,value=acc_T0*,value=acc_MTL*'); assert r.returncode==0, r.stderr
    got = dict(l.split()[:2] for l in r.stdout.splitlines()[1:])
    assert [float(got[m]) for m in ('acc_T0_reproduction','acc_MTL_TfirePfire')]==pytest.approx([float(w) for w in want], abs=.011)

def test_arg_asks_for_what_it_needs(tmp_path):
    columns = ('--columns','template=inferred_task_name,value=acc_*')
    r = call('arg', PAPER, *columns, '--baseline', 'acc_T0_reproduction'); assert r.returncode==0 and ' 0.0' in r.stdout, r.stdout+r.stderr
    refused(call('arg', PAPER), '--columns', 'inferred_task_name'); refused(call('arg', PAPER, *columns, '--baseline', 'T0'), 'acc_T0_reproduction')
    refused(call('arg', PAPER, *columns, '--by', 'macro11'), 'macro9'); refused(call('arg', tmp_path/'x.csv'), 'there is no file')

def test_a_command_leaves_the_environment_as_it_was(monkeypatch):
    from promptbench.cli.studies import quietly
    for mine in ('yes', None):
        monkeypatch.delenv('PROMPTBENCH_QUIET', raising=False) if mine is None else monkeypatch.setenv('PROMPTBENCH_QUIET', mine)
        with quietly() as before: assert os.environ['PROMPTBENCH_QUIET']=='1' and before==bool(mine)
        assert os.environ.get('PROMPTBENCH_QUIET')==mine

def test_every_command_that_computes_takes_a_device():
    for command in ('table1','study','sweep','run','evaluate','doctor'): assert '--device' in call(command,'--help').stdout, command
    for command in ('table1','study','sweep'):
        said = call(command,'--help').stdout
        for word in ('--executor','--workers','--option','--dry-run'): assert word in said, (command, word)
    refused(call('table1','--quick','--device','cuda:7'), 'cuda:7', 'must be on this machine')
    refused(call('table1','--quick','--executor','moon'), 'executor must be one of')
    refused(call('study','moon'), 'study must be one of'); refused(call('study','dials','-p','questions=lenght'), 'question must be one of')

def test_the_paper_s_scale_is_weighed_before_it_runs(tmp_path):
    r = call('table1','--suite','p3','--backbone','google/t5-xl-lm-adapt','--scale','paper','--dry-run','--device','cpu','--out',tmp_path/'never')
    assert '2,849.8' in r.stdout and 'pretrain T+P shallow s0' in r.stdout and 'tokens' in r.stdout and not (tmp_path/'never').exists(), r.stdout+r.stderr
    r = call('table1','--suite','p3','--backbone','google/t5-xxl-lm-adapt','--scale','paper','--dry-run','--device','cpu','--out',tmp_path/'never')
    assert r.returncode==2 and 'does not fit' in r.stdout and 'it would with' in r.stdout and 'not all of it fits' in r.stderr, r.stdout[-500:]+r.stderr

def test_real_data(shared):
    r = call('evaluate','--suite',shared/'real','--backbone','tiny','--quick'); assert r.returncode==0, r.stderr
    for name in ('anli_r1','anli_r2','anli_r3','cb','rte','copa','hellaswag','wsc','winogrande','wic'): assert name in r.stdout
    assert 'chance' in r.stdout and 'majority' in r.stdout

def test_table1_from_end_to_end(tmp_path):
    out = tmp_path/'t'; args = ['table1','--quick','--methods','none,T+P','--prompts','shallow','--n-eval','6','--precision','fp32','--out',out]
    r = call(*args); assert r.returncode==0, r.stderr[-2000:]
    assert 'ARG' in r.stdout and 'report.html' in r.stdout
    t = pd.read_csv(out/'table1.csv'); assert list(t.columns[:7])==['method','prompt','shots','arg','lo','hi','seeds'] and len(t)==4
    assert (t.lo<=t['arg']).all() and (t['arg']<=t.hi).all()
    assert list(pd.read_csv(out/'claims.csv').columns[:6])==['claim','verdict','estimate','lo','hi','p']
    r = call('arg', out, '--groups', 'none'); assert r.returncode==0, r.stderr
    head,*lines = r.stdout.splitlines(); assert head.split()[-2:]==['lo','hi'] and sorted(float(l.split()[5]) for l in lines)==pytest.approx(sorted(t['arg'].round(2)), abs=.02)
    assert len(pd.read_parquet(out/'rows.parquet'))==int(call('results', out, '--sql', 'select count(*) as n from rows').stdout.split()[-1])
    html = (out/'report.html').read_text(); assert len(html)<6e6 and 'T+P' in html
    before = {p:p.stat().st_mtime_ns for p in out.rglob('*') if p.is_file()}
    again = call(*args); assert again.returncode==0 and 'nothing to compute' in again.stdout
    assert {p:p.stat().st_mtime_ns for p in out.rglob('*') if p.is_file()}==before

def test_an_evaluation_is_named_by_content(tmp_path):
    "An edited suite under its old name is another run, and goes into a store beside the old one"
    import pandas as pd
    from promptbench.cli.main import _run_name
    from promptbench.data.suite import suite_digest
    folder = tmp_path/'s'/'sentiment'/'films'; folder.mkdir(parents=True)
    (folder/'validation.jsonl').write_text('{"text": "good", "label": 1}\n')
    (folder/'templates.yaml').write_text('templates:\n  a: !Template\n    name: a\n    jinja: "{{text}} ||| {{answer_choices[label]}}"\n    answer_choices: "no ||| yes"\n')
    name = lambda **change: _run_name(suite_digest(tmp_path/'s'), change.get('backbone', 'tiny'), 'fp32', 'eval', None, False, 0, 'mean', 768)
    first = name()
    assert name()==first!=name(backbone='tiny-1')
    (folder/'validation.jsonl').write_text('{"text": "bad", "label": 0}\n')
    assert name()!=first
