"""Table 1 on a real model and real tasks:  python tests/table1_smollm2.py DATA OUT [--seeds 0,1] [--prompts shallow] [--methods ...] [--dev]

DATA is a folder of datasets with promptsource templates and a manifest.json; of these are used the short ones named below:
four clusters to pretrain on, one to choose settings on (--dev: each setting is a small table of its own, the numbers are printed),
four that nothing was trained or chosen on. A job that is finished is not done again; Ctrl-C and the same call go on.
`promptbench get smollm2` comes first. What it gives is kept by tests/keep_table.py FOLDER data/results/table1-smollm2; data/results/README.md says when and how long."""
import argparse, json, shutil, sys
from pathlib import Path

TRAIN = ('commonsense_qa','arc_easy','openbookqa','social_i_qa','qasc','nq_open','web_questions','rotten_tomatoes','sst2','ag_news','trec','common_gen')
DEV   = ('mrpc','qqp')
EVAL  = ('rte','cb','copa','winogrande','wic')
ROLES = {name:role for role,names in dict(train=TRAIN, dev=DEV, eval=EVAL).items() for name in names}

# lr chosen by --dev, the rate of tuning on a training dataset (LOG.md); a rate is the largest root-mean-square change of an update
SETTINGS = dict(pretrain=dict(preset='tiny', examples=4000, batch_size=32, length=10, lr=1e-4, prompt_lr=3e-3, decay=1., row_tokens=2048),
                tune=dict(steps=40, lr=3e-3), init='paper', n_eval=100, templates=1)
DIALS = dict(lr=(3e-5, 1e-4, 3e-4), tune_lr=(1e-3, 3e-3, 1e-2))

def part_of(data:Path, place:Path)->Path:
    "The datasets named above with their templates, as a suite of their own"
    from promptbench.data.templates import folder_layout
    there = {e['name']:e for e in json.loads((data/'manifest.json').read_text())}
    gone = [n for n in ROLES if n not in there]
    if gone: sys.exit(f'{data} must hold the datasets {gone}; it does not')
    place.mkdir(parents=True, exist_ok=True); listed = []
    for name,role in ROLES.items():
        e = there[name]; new = place/e['cluster']/name
        if not new.is_dir(): shutil.copytree(data/e['cluster']/name, new)
        homes = (data/e['cluster']/name, data.parent/'templates'/e['templates'], data/'templates'/e['templates'])
        shutil.copyfile(next(h/'templates.yaml' for h in homes if (h/'templates.yaml').is_file()), new/'templates.yaml')
        listed.append(dict(name=name, cluster=e['cluster'], role='evaluation' if role=='eval' else role))
    (place/'manifest.json').write_text(json.dumps(listed))
    return place

def table(suite:Path, a, **changes):
    from promptbench.studies.table1 import Settings
    s = SETTINGS|{k:v for k,v in changes.items() if k not in ('pretrain','tune')}
    return Settings(suite=str(suite), backbone='smollm2', scale='tiny', prompts=tuple(a.prompts.split(',')), seeds=changes.pop('seeds', tuple(int(x) for x in a.seeds.split(','))),
                    methods=changes.pop('methods', tuple(a.methods.split(','))), shots=changes.pop('shots', (0,16)), role=changes.pop('role', 'eval'),
                    pretrain=s['pretrain']|changes.get('pretrain', {}), tune=s['tune']|changes.get('tune', {}), init=s['init'], n_eval=s['n_eval'], templates=s['templates'])

def asked(suite:Path, a)->dict:
    "What is asked on the development cluster: the transformer's rate at 0 shots, the rate of tuning with 16, a quarter of the examples"
    small = dict(role='dev', seeds=(900,), templates=2)
    out = {f'lr {lr:g}': table(suite, a, **small, methods=('T-only',), shots=(0,), pretrain=dict(examples=1000, lr=lr)) for lr in DIALS['lr']}
    return out|{f'tune_lr {lr:g}': table(suite, a, **small, methods=('none',), shots=(0,16), tune=dict(lr=lr)) for lr in DIALS['tune_lr']}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', type=Path); p.add_argument('out', type=Path); p.add_argument('--dev', action='store_true')
    p.add_argument('--seeds', default='0,1'); p.add_argument('--prompts', default='shallow'); p.add_argument('--methods', default='none,in context,T-only,P-only,T+P')
    p.add_argument('--workers', type=int, default=1)
    a = p.parse_args()
    from promptbench.studies.table1 import finish, gather, run_all
    suite = part_of(a.data, a.out/'suite')
    if a.dev:
        for name,s in asked(suite, a).items():
            out = run_all(s, a.out/'dev'/name.replace(' ', '-'), workers=a.workers); rows = gather(s, out)['rows']
            print(name, rows.groupby(['method','prompt','shots','dataset']).value.mean().round(3).to_dict(), flush=True)
        return
    s = table(suite, a)
    out = run_all(s, a.out/'table', workers=a.workers)
    print(finish(s, out, command=' '.join(sys.argv))['table'].to_string())

if __name__=='__main__': main()
