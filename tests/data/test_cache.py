import xxhash

from kwise.data import cache


def test_the_cache_lies_where_the_user_says_else_where_caches_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setenv("KWISE_CACHE", str(tmp_path / "own"))
    assert cache.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("KWISE_CACHE")
    assert cache.cache_folder() == tmp_path / "caches" / "kwise"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "kwise"


def test_the_hash_is_of_the_whole_file_however_long(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "PIECE", 4)
    (tmp_path / "a").write_bytes(b"0123456789")
    assert cache.content_hash(tmp_path / "a") == xxhash.xxh3_128_hexdigest(b"0123456789")
