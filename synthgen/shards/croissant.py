"""croissant.json: the export in the metadata format of ML Commons (Croissant 1.0), with the sha256 of every file."""

from __future__ import annotations

import json
from typing import Any

from synthgen.shards.parquet import COLUMNS
from synthgen.types import ExportFile, Shard, ShardManifest

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context that the specification prescribes."""
TYPES = {"int64": "sc:Integer", "string": "sc:Text", "bool": "sc:Boolean", "double": "sc:Float"}
MEDIA = {
    "parquet": "application/x-parquet",
    "webdataset": "application/x-tar",
    "npz": "application/zip",
    "mds": "application/octet-stream",
}
MEANING = {
    "image": "the synthetic image",
    "label": "class number",
    "key": "name for life: checkpoint and index",
    "class_name": "name of the class",
    "synthetic": "true",
    "generator": "kind of generator",
    "checkpoint": "sha256 of the generator's checkpoint",
    "seed": "of sampling",
    "index": "of the sample under that checkpoint and seed",
    "sampler": "name and settings of the sampler",
    "licence": "of the sample",
    "nearest": "key of the nearest real image that the generator saw",
    "nearest_distance": "to it",
}


def text(whole: ShardManifest) -> str:
    """The JSON-LD; of an export without Parquet the files alone, since Croissant can't look into the others."""
    return json.dumps(describe(whole), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def describe(whole: ShardManifest) -> dict[str, Any]:
    """The JSON-LD as JSON types."""
    tables = [shard for shard in whole.shards if shard.format == "parquet"]
    files = [
        _file(shard, MEDIA.get(shard.format, "image/png" if shard.path.endswith(".png") else "image/webp"))
        for shard in whole.shards
    ]
    files += [_file(file, "text/markdown" if file.path.endswith(".md") else "application/json") for file in whole.files]
    found: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "".join(char if char.isalnum() or char in "-_" else "-" for char in f"{whole.spec.name}-synthetic"),
        "description": f"{whole.num_samples} synthetic images of {whole.spec.num_classes} classes. Gate: {whole.gate_verdict}. "
        f"Gain: {whole.verdict or 'not measured'}.",
        "license": whole.licence or "unknown",
        "url": "README.md",
        "version": "1.0.0",
        "distribution": files,
    }
    if tables:
        files.append(
            {
                "@type": "cr:FileSet",
                "@id": "parquet",
                "encodingFormat": MEDIA["parquet"],
                "includes": "parquet/*.parquet",
            }
        )
        found["recordSet"] = [{"@type": "cr:RecordSet", "@id": "samples", "name": "samples", "field": _fields()}]
    return found


def _file(file: Shard | ExportFile, media: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": file.path,
        "name": file.path,
        "contentUrl": file.path,
        "contentSize": f"{file.num_bytes} B",
        "encodingFormat": media,
        "sha256": file.sha256,
    }


def _fields() -> list[dict[str, Any]]:
    fields = []
    for name, meaning in MEANING.items():
        source: dict[str, Any] = {"fileSet": {"@id": "parquet"}, "extract": {"column": name}}
        if name == "image":
            source["transform"] = {"jsonPath": "bytes"}
        kind = "sc:ImageObject" if name == "image" else TYPES[str(COLUMNS[name])]
        fields.append(
            {
                "@type": "cr:Field",
                "@id": f"samples/{name}",
                "name": f"samples/{name}",
                "description": meaning,
                "dataType": kind,
                "source": source,
            }
        )
    return fields
