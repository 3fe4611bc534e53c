"""Ends this process at its n-th write, or lets the disk be full from then on, where the environment or `arm` says so.

WRITE_FAULT='kill 7' or 'full 7'; WRITE_FAULT_ONCE names a file: whoever makes it is the only process that is hurt; WRITE_FAULT_IN is a word of the paths
that count. A write is a file that is opened for writing, forced onto the disk or given its name, or tensors that are saved."""
import builtins, errno, io, os, signal, sys

class Faults:
    "Counts writes of this process; `at` None only counts"
    def __init__(self, what='kill', at=None, once=None, word=''): self.what,self.at,self.once,self.word,self.n,self.on = what,at,once,word,0,True
    def hurts(self, place)->bool:
        "Whether this write is the one, or comes after a disk was full"
        if not self.on or self.word not in str(place): return False
        self.n += 1
        if self.at is None or self.n<self.at or self.what=='kill' and self.n>self.at: return False
        if self.once and self.n==self.at:
            try: os.close(os.open(self.once, os.O_CREAT|os.O_EXCL))
            except FileExistsError: self.on = False
        return self.on
    def hit(self, place):
        "The end of this process, or an error"
        if not self.hurts(place): return
        if self.what=='kill': os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))

def arm(what='kill', at=None, once=None, word='')->Faults:
    "Put the counter around whatever writes"
    f = Faults(what, at, once, word); opened,synced,replaced,renamed = io.open,os.fsync,os.replace,os.rename
    def open_(file, mode='r', *a, **k):
        if any(c in mode for c in 'wax+'): f.hit(_name(file))
        return opened(file, mode, *a, **k)
    def fsync(fd): f.hit(_name(fd)); return synced(fd)
    def moved(really):
        def move(a, b, *rest, **k):
            if f.what=='kill': f.hit(b)   # a full disk still takes names
            return really(a, b, *rest, **k)
        return move
    builtins.open = io.open = open_; os.fsync = fsync; os.replace,os.rename = moved(replaced),moved(renamed)
    if 'safetensors' in sys.modules: _watch_tensors(f)
    return f

def _name(file)->str:
    if not isinstance(file, int): return os.fspath(file)
    try: return os.readlink(f'/proc/self/fd/{file}')
    except OSError: return ''

def _watch_tensors(f):
    "Half of the tensors are on the disk when it happens"
    import safetensors.torch as st
    from safetensors import SafetensorError
    really = st.save_file
    def save_file(tensors, filename, *a, **k):
        if not f.hurts(filename): return really(tensors, filename, *a, **k)
        really(tensors, filename, *a, **k); os.truncate(filename, os.path.getsize(filename)//2)
        if f.what=='kill': os.kill(os.getpid(), signal.SIGKILL)
        raise SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)')
    st.save_file = save_file

if said := os.environ.get('WRITE_FAULT'):
    arm(said.split()[0], int(said.split()[1]), os.environ.get('WRITE_FAULT_ONCE'), os.environ.get('WRITE_FAULT_IN', ''))
