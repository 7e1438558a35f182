from conftest import SMALL, events_of


def test_it(tiny, rows, tmp_path, cli):
    import time

    for extra in ([], ["method=lora"]):
        t = time.time()
        done = cli(
            "train",
            f"model={tiny}",
            f"data={rows}",
            f"output={tmp_path / ('run' + str(len(extra)))}",
            *SMALL,
            "max_steps=3",
            *extra,
        )
        print(time.time() - t, done)
    for e in events_of(tmp_path / "run0"):
        print(str(e)[:200])
    import subprocess

    print(subprocess.run(["find", str(tmp_path)], capture_output=True, text=True).stdout)
    assert 0
