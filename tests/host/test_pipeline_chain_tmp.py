import time
def test_chain(zen, tmp_path):
    job = zen.submit("chain", tmp_path, length=10)
    t=time.time()
    code, output = job.pipeline()
    print("WALL", time.time()-t)
    begins = [job.trace("one")[0]["time"]] + [job.trace(f"add_{i}")[0]["time"] for i in range(1,10)]
    print("FIRST", begins[0]-t)
    print([round(b-a,2) for a,b in zip(begins,begins[1:])])
    assert code == 0
