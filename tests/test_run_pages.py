"The run pages one after another, each from the folder of the one before, on a backbone of seconds"
from promptbench.engine.folder import gc, list_runs, read_json
from promptbench.engine.pages import execute

def test_pretrain_tune_evaluate_report(tmp_path):
    from promptbench.data.suite import load_suite
    from promptbench.model.backbone import random_backbone, save_backbone
    from promptbench.prompt.checkpoint import load_checkpoint
    from promptbench.stats.results import read_predictions, read_rows
    examples = [e for t in load_suite('microworld').tasks() if t.ranked for e in t.examples('validation' if t.role=='eval' else 'train', 40)]
    words = sorted({w for e in examples for x in (e.source,*e.choices) for w in x.split()}); save_backbone(random_backbone(words, seed=1), tmp_path/'bb'); root = tmp_path/'runs'; small = dict(n_eval=4, precision='fp32')
    def go(page, **given): r = execute(page, given, root=root); assert (r.state, r.code)==('done', 0), r.message; return r
    a = go('pretrain', method='P-only', backbone=str(tmp_path/'bb'), examples=64, precision='fp32')
    assert {'page.ipynb','card.json','log.txt','checkpoints'}<={p.name for p in a.folder.iterdir()} and read_json(a.folder/'card.json')['config']['method']=='P-only' and read_json(a.folder/'card.json')['budget']['examples']==64
    b = go('tune', checkpoint=f'run:{a.key}', shots=4, steps=3, **small); card = read_json(b.folder/'card.json')
    assert card['needs']==[a.key] and card['budget']['updates']==3 and card['method']=='P-only' and card['prompt']=='shallow' and card['seeds']==0
    rows = read_rows(b.folder/'rows.parquet'); assert set(rows.method)=={'P-only'} and set(rows.shots)=={4} and set(rows.run)=={b.key} and len(read_predictions(b.folder))==4*len(rows)
    bank = load_checkpoint(b.folder/'checkpoints'/'final')[1]; assert len(bank)==len(rows) and not list((b.folder/'checkpoints').glob('step-*'))
    c = go('evaluate', checkpoint=f'run:{b.key}', store=str(tmp_path/'store'), **small); assert (read_rows(c.folder).value==rows.value).all(), 'the tuned prompts, loaded again, give the same answers'
    assert len(read_rows(tmp_path/'store'))==len(rows) and {r['what'] for r in gc(root, older=0, dry_run=True) if not r['gone']}=={a.key, b.key}
    d = go('report', source=str(tmp_path/'store'), samples=50); assert {'report.html','table1.csv','claims.csv','rows.parquet'}<={p.name for p in d.folder.iterdir()} and 'P-only' in (d.folder/'report.html').read_text()
    assert {r['page'] for r in list_runs(root)}=={'pretrain','tune','evaluate','report'}
