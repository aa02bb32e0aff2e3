"""What a tuned transfer of boto3 takes to send the bytes of one object to another through this machine, as any program
does that changes names in a header: ranges of one length are read by as many threads as ours has requests under way,
and sent as the parts of a multipart upload as they come.

    with_boto3.py KEY TARGET
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor

PART = 8 << 20
THREADS = 16


def main() -> None:
    """The command line."""
    import boto3
    from botocore.config import Config

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("key")
    parser.add_argument("target")
    options = parser.parse_args()
    settings = Config(
        max_pool_connections=THREADS,
        retries={"max_attempts": 10, "mode": "standard"},
        s3={"addressing_style": "path", "payload_signing_enabled": False},
    )
    client = boto3.client("s3", config=settings)
    size = client.head_object(Bucket="bucket", Key=options.key)["ContentLength"]
    upload = client.create_multipart_upload(Bucket="bucket", Key=options.target)["UploadId"]

    def sent(number: int) -> dict[str, object]:
        begin = number * PART
        wanted = f"bytes={begin}-{min(begin + PART, size) - 1}"
        body = client.get_object(Bucket="bucket", Key=options.key, Range=wanted)["Body"].read()
        place = {"Bucket": "bucket", "Key": options.target, "UploadId": upload, "PartNumber": number + 1}
        return {"PartNumber": number + 1, "ETag": client.upload_part(Body=body, **place)["ETag"]}

    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(sent, range(-(-size // PART))))
    client.complete_multipart_upload(
        Bucket="bucket", Key=options.target, UploadId=upload, MultipartUpload={"Parts": parts}
    )


if __name__ == "__main__":
    main()
