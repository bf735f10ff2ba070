import nbd,sys
uri=sys.argv[1]
h=nbd.NBD(); h.add_meta_context('base:allocation'); h.connect_uri(uri)
h.pread(4096,0); h.pwrite(b'x'*3000,1000); h.pwrite(b'y'*512,4096,nbd.CMD_FLAG_FUA)
assert h.pread(3000,1000)==b'x'*3000
assert h.pread(5,999)[1:]==b'xxxx'
if h.can_trim(): h.trim(8192,65536)
h.zero(3,10000); h.zero(20000,70000,nbd.CMD_FLAG_NO_HOLE)
h.pread(3000,60000); h.block_status(131072,0,lambda *a:0)
try: h.cache(4096,0)
except nbd.Error: pass
h.flush()
r=nbd.NBD(); r.connect_uri(uri)
assert r.pread(3000,1000)==b'x'*3000
b=[nbd.Buffer(512) for _ in range(8)]
c=[h.aio_pread(b[i],65536+i*512) for i in range(8)]
w=h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"z"*512)),65536+512)
for x in c+[w]:
    while not h.aio_command_completed(x): h.poll(-1)
r.shutdown(); h.pwrite(b'the end',100); h.shutdown()
l=nbd.NBD(); l.set_opt_mode(True); l.connect_uri(uri); l.opt_list(lambda *a:0); l.opt_abort()
